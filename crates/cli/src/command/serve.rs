//! `casemate serve`.

use super::options::{LaterOptions, MachineOptions, StartOptions};
use crate::{
    context::Context,
    engine::{fleet::Fleet, machines},
    error::{Error, Outcome},
    render::harmless,
    units,
};
use casemate_gateway::{Gateway, Guard, Limits};
use casemate_proto::ids::Name;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};
use tokio::net::TcpListener;

/// Serve all servers over HTTP: each client has a session, and a machine of its own
///
/// Server NAME is at /mcp/NAME, over Streamable HTTP of the revisions 2025-03-26 to 2025-11-25 (but
/// no batches, which the first of them has). A session begins with `initialize`: its machine is
/// restored from the server's template. It ends with DELETE, when nothing was said for a while, or
/// with its server. /health says that the gateway answers, /ready that it takes sessions. SIGTERM
/// lets open requests be answered first, for as long as --drain says; machines then have 15 seconds
/// to end. A second signal ends it at once.
///
/// There is no authentication yet, so it listens on this machine only, and is only known under this
/// machine's own names.
///
/// Examples:
///   casemate serve
///   casemate serve --listen 127.0.0.1:8080 --session-idle 5m
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Serve {
    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// A host name under which clients may ask for this gateway, at any port; may be repeated
    #[arg(long, value_name = "NAME", value_parser = host)]
    allow_host: Vec<String>,
    /// A web page's origin that may speak with it, such as `https://app.example`; may be repeated
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    allow_origin: Vec<String>,
    /// Listen on another address than this machine's own, where whoever reaches it may use every server
    #[arg(long)]
    insecure_no_auth: bool,
    /// End a session after so long without a message
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = positive)]
    session_idle: Duration,
    /// How long open requests may take to be answered once the gateway is told to end
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    drain: Duration,
    /// Print JSON once it listens: {listen, servers: [{name, url}]}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    start: StartOptions,
    #[command(flatten)]
    later: LaterOptions,
}

#[derive(Serialize)]
struct Listening<'a> {
    listen: SocketAddr,
    servers: Vec<Door<'a>>,
}

#[derive(Serialize)]
struct Door<'a> {
    name: &'a Name,
    url: String,
}

/// Serves until a signal.
pub async fn run(args: Serve, context: &Rc<Context>) -> Result<Outcome, Error> {
    args.later.refuse()?;
    refuse_the_open_world(&args)?;
    let configuration = context.configuration()?;
    if configuration.servers.is_empty() {
        return Err(Error::configuration("there is no server to serve")
            .hint("casemate add NAME npm:PACKAGE defines one"));
    }
    let fleet = Fleet::new(Rc::clone(context), configuration, args.machine, args.start);
    // One that cannot be used hides no other; its clients are told the same.
    for name in fleet.servers() {
        if let Err(error) = fleet.settle(name) {
            context.screen.warn(&format!("{name} cannot be used: {}", harmless(&error.report().to_string())));
        }
    }
    let limits = Limits { session_idle: args.session_idle, drain: args.drain, ..Limits::default() };
    let most = descriptors(limits.descriptors());
    let limits = limits.within_descriptors(most);
    let listener = TcpListener::bind(args.listen).await.and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    let (listener, address) = listener.map_err(|error| {
        Error::unavailable(format!("cannot listen on {}", args.listen))
            .because(error)
            .hint("use another port with --listen 127.0.0.1:PORT")
    })?;
    let door = door(address, &args.allow_host);
    let url = |name: &Name| format!("http://{door}/mcp/{name}");
    let servers: Vec<Door<'_>> = fleet.servers().map(|name| Door { name, url: url(name) }).collect();
    if args.json {
        context.screen.json(&Listening { listen: address, servers })?;
    } else {
        let lines: Vec<String> =
            servers.iter().map(|door| format!("  {}  {}\n", door.url, door.name)).collect();
        context.screen.print(&format!("Listening on http://{door}\n{}", lines.concat()))?;
    }
    let guard = Guard::new(address.ip(), &args.allow_host, &args.allow_origin);
    let stop = context.drain.asked();
    Gateway::new(fleet, guard, limits).serve(listener, stop).await;
    // Machines that were dropped end as those of an interrupted command do.
    if let Some(left) = machines::gone(context).await {
        context.screen.warn(&left);
    }
    Ok(Outcome::Done)
}

/// Where clients on this machine find it: no address is every address, and no name that the gateway knows.
fn door(address: SocketAddr, names: &[String]) -> String {
    match address.ip().is_unspecified() {
        false => address.to_string(),
        true => {
            let name = names.first().map_or("localhost", String::as_str);
            let name = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
            format!("{name}:{}", address.port())
        }
    }
}

/// Raises the number of descriptors that this process may have, as far as it is needed and allowed; how many it
/// then may.
fn descriptors(needed: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let wanted = (needed as u64).min(most).max(limit.current.unwrap_or(u64::MAX));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    let have = if raised.is_ok() { Some(wanted) } else { limit.current };
    have.map_or(usize::MAX, |have| usize::try_from(have).unwrap_or(usize::MAX))
}

/// Without authentication whoever reaches the gateway may use it.
fn refuse_the_open_world(args: &Serve) -> Result<(), Error> {
    if args.listen.ip().is_loopback() || args.insecure_no_auth {
        return Ok(());
    }
    let open =
        format!("{} is not this machine's own address, and there is no authentication yet", args.listen);
    Err(Error::usage(open).hint(
        "use --listen 127.0.0.1:PORT behind a proxy that authenticates, or say --insecure-no-auth where nobody \
         else reaches that address",
    ))
}

/// Reads a host's name or address, and nothing beside it: any port will do.
fn host(text: &str) -> Result<String, &'static str> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let is_name = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    match is_name || bare.parse::<IpAddr>().is_ok() {
        true => Ok(bare.to_owned()),
        false => Err("write the name alone, such as gate.example, without scheme and port"),
    }
}

/// Reads an origin, and writes it as browsers do: without the port that its scheme has anyway.
fn origin(text: &str) -> Result<String, &'static str> {
    let split = [("https://", ":443"), ("http://", ":80")];
    let known = split.iter().find_map(|&(scheme, port)| Some((text.strip_prefix(scheme)?, port)));
    match known {
        Some((rest, port)) if !rest.is_empty() && !rest.contains(['/', '*', '?', '#', '@', ' ']) => {
            Ok(text.strip_suffix(port).unwrap_or(text).to_owned())
        }
        _ => Err("write scheme and host as browsers do, such as https://app.example or http://host:8080"),
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    let time = units::duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("write a time that is longer than none".to_owned()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        for right in ["https://app.example", "http://localhost:5173", "http://[::1]:1"] {
            assert_eq!(origin(right).as_deref(), Ok(right));
        }
        for wrong in ["", "*", "app.example", "https://", "https://app.example/", "https://*.example", "null"]
        {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_port_that_a_scheme_has_anyway_is_left_out_as_browsers_do() {
        assert_eq!(origin("https://app.example:443").as_deref(), Ok("https://app.example"));
        assert_eq!(origin("http://app.example:80").as_deref(), Ok("http://app.example"));
        assert_eq!(origin("http://app.example:443").as_deref(), Ok("http://app.example:443"));
    }

    #[test]
    fn a_host_is_a_name_and_nothing_else() {
        for right in ["gate.example", "GATE", "10.0.0.1", "fe80::1"] {
            assert_eq!(host(right).as_deref(), Ok(right));
        }
        assert_eq!(host("[fe80::1]").as_deref(), Ok("fe80::1"));
        for wrong in ["", "gate.example:8443", "https://gate.example", "gate.example/", "a@b", "*.example"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_address_that_is_shown_is_one_that_is_answered() {
        let shown = |address: &str, names: &[&str]| {
            door(address.parse().unwrap(), &names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(shown("127.0.0.1:3000", &["gate.example"]), "127.0.0.1:3000");
        assert_eq!(shown("0.0.0.0:3000", &[]), "localhost:3000");
        assert_eq!(shown("[::]:3000", &["gate.example"]), "gate.example:3000");
        assert_eq!(shown("[::]:3000", &["fe80::1"]), "[fe80::1]:3000");
    }

    #[test]
    fn descriptors_are_raised_and_never_lowered() {
        let before = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert_eq!(descriptors(1) as u64, before);
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let raised = descriptors(before as usize + 1) as u64;
        assert_eq!(raised, (before + 1).min(most));
        assert_eq!(getrlimit(Resource::Nofile).current, Some(raised));
    }

    #[test]
    fn a_session_that_ends_at_once_is_refused() {
        assert_eq!(positive("90s"), Ok(Duration::from_secs(90)));
        assert!(positive("0s").is_err() && positive("x").is_err());
    }
}
