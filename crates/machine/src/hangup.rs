//! Tells a client that went away from one that only has nothing more to say.
//!
//! Both read as the end of the stream. On a Unix stream socket the kernel reports `POLLHUP` for the first
//! alone (`unix_poll`: both directions are shut), and `POLLRDHUP` for the second.

use crate::sys;
use std::os::fd::AsFd;
use tokio::net::UnixStream;

/// Resolves when nobody has the other end any more. May be cancelled.
///
/// It watches a descriptor of its own, so that it takes no readiness from who reads and writes. Where
/// descriptors have run out it never resolves: then the end shows as it does without it.
pub(crate) fn hung_up(stream: &UnixStream) -> impl Future<Output = ()> + use<> {
    // Registered for reading, woken as if for writing: that leaves the hang-up and errors.
    let watched = stream.as_fd().try_clone_to_owned().and_then(sys::readable);
    async move {
        match watched {
            Ok(watched) => drop(watched.writable().await),
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    const LATER: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_half_close_is_no_hang_up_and_the_end_is_one() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        assert!(timeout(LATER, hung_up(&near)).await.is_err(), "an idle client");
        far.write_all(b"last words").await.unwrap();
        assert!(timeout(LATER, hung_up(&near)).await.is_err(), "one that spoke");
        far.shutdown().await.unwrap();
        assert!(timeout(LATER, hung_up(&near)).await.is_err(), "one that says no more");
        near.write_all(b"answer").await.unwrap();
        far.read_exact(&mut [0; 6]).await.unwrap();
        drop(far);
        timeout(LONG, hung_up(&near)).await.expect("one that is gone");
        let mut said = String::new();
        near.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "last words");
        timeout(LONG, hung_up(&near)).await.expect("one that was gone before");
    }

    #[tokio::test]
    async fn waiting_for_the_end_leaves_reading_and_writing_alone() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let gone = hung_up(&near);
        let echo = async {
            for _ in 0..100 {
                let byte = near.read_u8().await.unwrap();
                near.write_all(&[byte]).await.unwrap();
            }
        };
        let client = async {
            for round in 0..100u8 {
                far.write_all(&[round]).await.unwrap();
                assert_eq!(far.read_u8().await.unwrap(), round);
            }
        };
        timeout(LONG, async {
            tokio::select! {
                () = async { tokio::join!(echo, client); } => {}
                () = gone => panic!("the client is there"),
            }
        })
        .await
        .unwrap();
    }
}
