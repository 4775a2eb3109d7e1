//! One connection: HTTP/1.1, with bounds on heads and time.

use crate::{Backend, Gateway, patience::Patience};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, future::poll_fn, pin::Pin, rc::Rc};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::watch,
};

/// The answer to a head that does not come to its end; there is no request yet to answer.
const SLOW_HEAD: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Serves a connection until either side ends it, or `closing` says so: then after the request that is being
/// answered. Cancelling breaks it off.
pub async fn serve<B: Backend>(
    gateway: Rc<Gateway<B>>,
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    mut closing: watch::Receiver<bool>,
) {
    let limits = Rc::clone(gateway.limits());
    let service = service_fn(move |request: Request<Incoming>| {
        let gateway = Rc::clone(&gateway);
        Box::pin(async move { Ok::<_, Infallible>(gateway.answer(request).await) })
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head_time);
    builder.max_buf_size(limits.head_bytes).max_headers(limits.head_fields);
    let mut connection =
        builder.serve_connection(TokioIo::new(Patience::new(io, limits.slow_reader)), service);
    // A gateway that is gone closes nothing any more.
    let told = async { closing.wait_for(|closing| *closing).await.is_ok() };
    let ended = tokio::select! {
        ended = poll_fn(|context| connection.poll_without_shutdown(context)) => Some(ended),
        true = told => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|context| connection.poll_without_shutdown(context)).await
        }
    };
    let parts = connection.into_parts();
    let mut io = parts.io.into_inner();
    let has_begun = !parts.read_buf.is_empty();
    if ended.is_err_and(|error| error.is_timeout()) && has_begun {
        let _ = io.write_all(SLOW_HEAD).await;
    }
    // A client that is gone has closed it already.
    let _ = io.shutdown().await;
}
