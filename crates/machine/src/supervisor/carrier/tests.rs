//! Clients and machines at the two ends of what is carried, both played by the test.

use super::*;
use crate::supervisor::played::{at_rest, within_a_minute};
use proptest::prelude::*;
use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream as StdStream,
};
use tokio::{
    net::UnixStream,
    task::{spawn_local, yield_now},
};

/// A machine's end of a stream, with little room on the way to it.
struct Machine(StdStream);

impl Machine {
    fn new() -> (Self, Stream) {
        let (machine, ours) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
        (Self(machine.into_std().unwrap()), Stream::from_unix(ours))
    }

    /// All that has come, and whether that is the end.
    fn hears(&mut self) -> (Vec<u8>, bool) {
        let mut heard = Vec::new();
        match self.0.read_to_end(&mut heard) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => (heard, false),
            read => {
                read.unwrap();
                (heard, true)
            }
        }
    }

    async fn hears_the_rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let (heard, ended) = self.hears();
            all.extend(heard);
            if ended {
                return all;
            }
            yield_now().await;
        }
    }

    /// Says as much of this as there is room for.
    fn says(&mut self, bytes: &[u8]) -> usize {
        match self.0.write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            written => written.unwrap(),
        }
    }

    fn says_no_more(&self) {
        self.0.shutdown(Shutdown::Write).unwrap();
    }
}

/// Bytes of which none can be lost or come twice unnoticed.
fn numbered(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|number| (number % 251) as u8).collect()
}

#[test]
fn what_is_said_while_nobody_is_there_arrives_later_and_nothing_is_lost() {
    within_a_minute(async {
        let (machine, ours) = UnixStream::pair().unwrap();
        let (carrier, mut client) = Carrier::begin(Stream::from_unix(ours));
        let (mut from_client, mut to_client) = split(machine);
        client.write_all(b"one").await.unwrap();
        let mut heard = [0; 3];
        from_client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"one");

        carrier.hold();
        client.write_all(b"two").await.unwrap();
        to_client.write_all(b"last").await.unwrap();
        to_client.shutdown().await.unwrap();
        assert!(carrier.parked().await);
        let mut heard = [0; 4];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"last");

        let (machine, ours) = UnixStream::pair().unwrap();
        assert!(carrier.go_on(Stream::from_unix(ours)));
        let (mut from_client, mut to_client) = split(machine);
        let mut heard = [0; 3];
        from_client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"two");
        to_client.write_all(b"end").await.unwrap();
        to_client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"end");
    });
}

#[test]
fn a_client_that_says_no_more_hears_all_that_was_on_its_way_and_the_answer() {
    within_a_minute(async {
        let (mut machine, stream) = Machine::new();
        let (_carrier, mut client) = Carrier::begin(stream);
        let mut told = 0;
        loop {
            let said = machine.says(&numbered(told, CHUNK_BYTES));
            if said == 0 {
                break;
            }
            told += said;
            at_rest().await;
        }
        client.write_all(b"asked").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(machine.hears_the_rest().await, b"asked");
        let mut heard = vec![0; told];
        client.read_exact(&mut heard).await.unwrap();
        assert!(heard == numbered(0, told));
        machine.says(b"answer");
        machine.says_no_more();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"answer");
    });
}

/// Says more than there is room for at the client, and that this was all.
async fn floods(machine: &mut Machine, from: usize) -> usize {
    let mut told = from;
    while told < from + 2 * PIPE_BYTES {
        told += machine.says(&numbered(told, CHUNK_BYTES));
        yield_now().await;
    }
    machine.says_no_more();
    told
}

#[test]
fn a_client_that_reads_late_goes_on_with_the_stream_that_came_meanwhile() {
    within_a_minute(async {
        let (mut first, stream) = Machine::new();
        let (carrier, mut client) = Carrier::begin(stream);
        carrier.hold();
        let told = floods(&mut first, 0).await;
        let (mut second, stream) = Machine::new();
        assert!(carrier.go_on(stream));
        assert!(!carrier.go_on(Machine::new().1), "a stream that nobody takes");

        client.write_all(b"asked").await.unwrap();
        at_rest().await;
        assert_eq!(first.hears().0, b"", "it was said to a machine that let go of its stream");
        let mut heard = vec![0; told];
        client.read_exact(&mut heard).await.unwrap();
        assert!(heard == numbered(0, told));
        client.shutdown().await.unwrap();
        assert_eq!(second.hears_the_rest().await, b"asked");
        second.says(b"answer");
        second.says_no_more();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"answer");
    });
}

#[test]
fn a_stream_is_not_parked_because_the_one_before_it_is() {
    within_a_minute(async {
        let (mut first, stream) = Machine::new();
        let (carrier, mut client) = Carrier::begin(stream);
        carrier.hold();
        let told = floods(&mut first, 0).await;
        let (second, stream) = Machine::new();
        assert!(carrier.go_on(stream));
        carrier.hold();
        let mut heard = vec![0; told];
        client.read_exact(&mut heard).await.unwrap();
        at_rest().await;
        tokio::select! {
            biased;
            _ = carrier.parked() => panic!("the second stream is open"),
            () = at_rest() => {}
        }
        second.says_no_more();
        assert!(carrier.parked().await);
    });
}

#[test]
fn nobody_waits_for_a_conversation_that_is_over() {
    within_a_minute(async {
        let (machine, stream) = Machine::new();
        let (carrier, client) = Carrier::begin(stream);
        drop((machine, client));
        at_rest().await;
        assert!(!carrier.parked().await);
        assert!(!carrier.go_on(Machine::new().1));
    });
}

#[derive(Debug, Clone)]
enum Step {
    /// The client says something.
    Ask(usize),
    /// The machine does.
    Answer(usize),
    /// The machine reads.
    Hear,
    Rest,
    HoldAndRelease,
    /// The machine lets go of its stream with some last words, and takes another one; the client asks
    /// something meanwhile.
    Park {
        last: usize,
        asked: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let most = 3 * CHUNK_BYTES;
    let step = prop_oneof![
        4 => (1..most).prop_map(Step::Ask),
        4 => (1..most).prop_map(Step::Answer),
        2 => Just(Step::Hear),
        2 => Just(Step::Rest),
        1 => Just(Step::HoldAndRelease),
        3 => (0..CHUNK_BYTES, 0..CHUNK_BYTES).prop_map(|(last, asked)| Step::Park { last, asked }),
    ];
    prop::collection::vec(step, 0..40)
}

/// What both sides said, as far as there was room, and what they heard.
#[derive(Default)]
struct Talk {
    asked: usize,
    answered: usize,
    machine_heard: Vec<u8>,
    client_heard: Vec<u8>,
}

async fn talk(steps: Vec<Step>) -> Talk {
    let mut talk = Talk::default();
    let (mut machine, stream) = Machine::new();
    let (carrier, client) = Carrier::begin(stream);
    let (mut from_machine, mut to_machine) = split(client);
    let reading = spawn_local(async move {
        let mut heard = Vec::new();
        from_machine.read_to_end(&mut heard).await.unwrap();
        heard
    });
    let ask = async |talk: &mut Talk, to_machine: &mut WriteHalf<_>, count| {
        let words = numbered(talk.asked, count);
        tokio::select! {
            biased;
            written = to_machine.write(&words) => talk.asked += written.unwrap(),
            () = yield_now() => {}
        }
    };
    for step in steps {
        match step {
            Step::Ask(count) => ask(&mut talk, &mut to_machine, count).await,
            Step::Answer(count) => talk.answered += machine.says(&numbered(talk.answered, count)),
            Step::Hear => talk.machine_heard.extend(machine.hears().0),
            Step::Rest => at_rest().await,
            Step::HoldAndRelease => {
                carrier.hold();
                at_rest().await;
                carrier.release();
            }
            Step::Park { last, asked } => {
                carrier.hold();
                // The agent has got this before it is asked to let go.
                talk.machine_heard.extend(machine.hears().0);
                ask(&mut talk, &mut to_machine, asked).await;
                talk.answered += machine.says(&numbered(talk.answered, last));
                machine.says_no_more();
                assert!(carrier.parked().await);
                assert_eq!(machine.hears().0.len(), 0, "it was said to a machine that was held");
                let (next, stream) = Machine::new();
                assert!(carrier.go_on(stream));
                machine = next;
            }
        }
    }
    to_machine.shutdown().await.unwrap();
    talk.machine_heard.extend(machine.hears_the_rest().await);
    talk.answered += machine.says(&numbered(talk.answered, 1));
    machine.says_no_more();
    talk.client_heard = reading.await.unwrap();
    talk
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whenever_it_is_held_and_goes_on_nothing_is_lost_and_nothing_comes_twice(steps in steps()) {
        let talk = within_a_minute(talk(steps));
        prop_assert!(talk.machine_heard == numbered(0, talk.asked), "what the machine heard");
        prop_assert!(talk.client_heard == numbered(0, talk.answered), "what the client heard");
    }
}
