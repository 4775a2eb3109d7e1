//! Names for programs that heed no proxy: each gets an address of the machine's own, and what connects there
//! is connected to the name.
//!
//! The addresses are of a network for relays of multicast (RFC 7450), which nobody reaches by TCP. Those of
//! 127.0.0.0/8 would not do, nor others that are not public: servers that fetch what they are told to refuse
//! what resolves to such.
//!
//! A machine's resolver asks `127.0.0.1:53`, because `/etc/resolv.conf` names nobody else. The address says
//! nothing about the name's real one, which only the host looks up, for each connection anew.

use super::dns::{self, Answer, MESSAGE_BYTES, Question};
use super::way::Way;
use super::{AFTER_FAILURE, Use, serve};
use crate::{log, sys};
use casemate_proto::egress::{Allow, Host, Request, Target};
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Where resolvers ask.
const DNS_PORT: u16 = 53;

/// Names that get an address; each takes a descriptor for each of its ports.
const NAMES: u8 = 128;

/// What the addresses begin with, and the one that brings their network to the loopback interface.
const NETWORK: [u8; 3] = [192, 52, 193];
const OWN: u8 = 254;

/// Gives addresses to names.
#[derive(Debug)]
pub struct Names {
    socket: UdpSocket,
    known: Vec<Allow>,
    addresses: BTreeMap<String, Ipv4Addr>,
    listening: JoinSet<()>,
    way: Way,
    room: Arc<Semaphore>,
}

impl Names {
    /// Where questions are taken for names that match one of `known`.
    pub async fn open(known: Vec<Allow>, way: Way, room: Arc<Semaphore>) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, DNS_PORT)).await?;
        sys::loopback_address(socket.as_fd(), address(OWN))?;
        Ok(Self { socket, known, addresses: BTreeMap::new(), listening: JoinSet::new(), way, room })
    }

    /// Answers until this is dropped.
    pub async fn serve(mut self) {
        let mut message = [0; MESSAGE_BYTES];
        loop {
            let Ok((length, asker)) = self.socket.recv_from(&mut message).await else {
                // What one asker's socket reports of an earlier answer.
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            };
            let Some(question) = dns::parse(&message[..length]) else { continue };
            let answer = self.answer(&question).await;
            // An asker that has gone needs none.
            let _ = self.socket.send_to(&dns::answer(&question, answer), asker).await;
        }
    }

    async fn answer(&mut self, question: &Question<'_>) -> Answer {
        let Ok(host @ Host::Name(_)) = question.name.parse::<Host>() else { return Answer::NoName };
        let mut ports: Vec<u16> = self.known.iter().map(Allow::port).collect();
        ports.retain(|&port| {
            let target = Target { host: host.clone(), port };
            self.known.iter().any(|known| known.matches(&target))
        });
        ports.sort_unstable();
        ports.dedup();
        let name = host.to_string();
        match (ports.is_empty(), question.is_address, self.addresses.get(&name).copied()) {
            (true, _, _) => Answer::NoName,
            (_, false, _) => Answer::Nothing,
            (_, _, Some(address)) => Answer::Address(address),
            (_, _, None) => match self.add(name, &host, &ports).await {
                Ok(address) => Answer::Address(address),
                Err(error) => {
                    log::warn(format_args!("give {host} an address: {error}"));
                    Answer::Failed
                }
            },
        }
    }

    async fn add(&mut self, name: String, host: &Host, ports: &[u16]) -> io::Result<Ipv4Addr> {
        let number = u8::try_from(self.addresses.len()).unwrap_or(NAMES);
        if number >= NAMES {
            return Err(io::Error::other("too many names"));
        }
        let address = address(number + 1);
        let mut listeners = Vec::new();
        for &port in ports {
            listeners.push((port, TcpListener::bind((address, port)).await?));
        }
        for (port, listener) in listeners {
            let request = Request::Connect(Target { host: host.clone(), port });
            self.listening.spawn(serve(
                listener,
                Use::Straight(request),
                self.way.clone(),
                self.room.clone(),
            ));
        }
        self.addresses.insert(name, address);
        Ok(address)
    }
}

/// Whether an address is of those that names get.
pub fn holds(address: Ipv4Addr) -> bool {
    address.octets().starts_with(&NETWORK)
}

fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, number)
}
