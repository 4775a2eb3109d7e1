//! Questions of the domain name system (RFC 1035, section 4) that resolvers of programs ask, and answers.

use std::net::Ipv4Addr;

/// The longest message over UDP without extensions, which are ignored (section 4.2.1).
pub const MESSAGE_BYTES: usize = 512;

const HEADER_BYTES: usize = 12;
const CLASS_INTERNET: u16 = 1;
const TYPE_A: u16 = 1;

/// How long an answer may be kept, in seconds: in a machine it never changes.
const KEPT: u32 = 60;

/// One question.
#[derive(Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// The name, labels joined by dots; foreign text.
    pub name: String,
    /// Whether it asks for an address of IPv4.
    pub is_address: bool,
    id: [u8; 2],
    /// The bit that says whether the asker wants others to be asked, which is given back.
    wants_recursion: u8,
    raw: &'a [u8],
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This address.
    Address(Ipv4Addr),
    /// The name is known, and has nothing of that kind.
    Nothing,
    /// There is no such name.
    NoName,
    /// Not now.
    Failed,
}

/// Reads a message; nothing for what is no single question.
pub fn parse(message: &[u8]) -> Option<Question<'_>> {
    let (header, body) = message.split_at_checked(HEADER_BYTES)?;
    // A standard query that is not an answer, with one question.
    let is_query = header[2] & 0xf8 == 0 && header[4..6] == [0, 1];
    let mut labels = Vec::new();
    let mut rest = body;
    let after = loop {
        let (&length, more) = rest.split_first()?;
        match length {
            0 => break more,
            1..=63 => {
                let (label, more) = more.split_at_checked(length.into())?;
                // A dot inside a label would join two into another name.
                if label.contains(&b'.') {
                    return None;
                }
                labels.push(std::str::from_utf8(label).ok()?);
                rest = more;
            }
            // A pointer has nothing to point at in a question.
            _ => return None,
        }
    };
    let (kind, after) = after.split_at_checked(2)?;
    let (class, after) = after.split_at_checked(2)?;
    let is_internet = class == CLASS_INTERNET.to_be_bytes();
    (is_query && is_internet).then(|| Question {
        name: labels.join("."),
        is_address: kind == TYPE_A.to_be_bytes(),
        id: [header[0], header[1]],
        wants_recursion: header[2] & 1,
        raw: &body[..body.len() - after.len()],
    })
}

/// The message that answers a question.
pub fn answer(question: &Question<'_>, answer: Answer) -> Vec<u8> {
    const IS_ANSWER: u8 = 0x80;
    const CAN_RECURSE: u8 = 0x80;
    let (code, count) = match answer {
        Answer::Address(_) => (0, 1),
        Answer::Nothing => (0, 0),
        Answer::Failed => (2, 0),
        Answer::NoName => (3, 0),
    };
    let mut message = question.id.to_vec();
    message.extend([IS_ANSWER | question.wants_recursion, CAN_RECURSE | code, 0, 1, 0, count, 0, 0, 0, 0]);
    message.extend(question.raw);
    if let Answer::Address(address) = answer {
        // The name is that of the question, which stands behind the header.
        message.extend([0xc0, HEADER_BYTES as u8]);
        message.extend(TYPE_A.to_be_bytes());
        message.extend(CLASS_INTERNET.to_be_bytes());
        message.extend(KEPT.to_be_bytes());
        message.extend([0, 4]);
        message.extend(address.octets());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(labels: &[&[u8]], kind: u16) -> Vec<u8> {
        let mut message = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            message.push(label.len() as u8);
            message.extend(*label);
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let message = query(&[b"a", b"Example"], 1);
        let question = parse(&message).unwrap();
        assert_eq!((question.name.as_str(), question.is_address), ("a.Example", true));
        let answered = answer(&question, Answer::Address(Ipv4Addr::new(127, 254, 0, 1)));
        assert_eq!(answered[..12], [7, 8, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answered[12..message.len()], message[12..]);
        assert_eq!(answered[message.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 254, 0, 1]);
        assert_eq!(answer(&question, Answer::NoName)[3] & 15, 3);
        // With an extension behind it (RFC 6891).
        let extended = [&query(&[b"a"], 28)[..], &[0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0]].concat();
        let question = parse(&extended).unwrap();
        assert!(!question.is_address);
        assert_eq!(answer(&question, Answer::Nothing).len(), 12 + 3 + 4);
    }

    #[test]
    fn what_is_no_question_is_not_answered() {
        let good = query(&[b"a", b"example"], 1);
        for end in 0..good.len() {
            assert_eq!(parse(&good[..end]), None, "{end}");
        }
        let mut answered = good.clone();
        answered[2] |= 0x80;
        assert_eq!(parse(&answered), None);
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(parse(&two), None);
        let mut pointer = good.clone();
        pointer[12] = 0xc0;
        assert_eq!(parse(&pointer), None);
        assert_eq!(parse(&query(&[b"a.example"], 1)), None);
        let mut other_class = good;
        *other_class.last_mut().unwrap() = 3;
        assert_eq!(parse(&other_class), None);
    }

    proptest! {
        #[test]
        fn any_message_is_read_or_left(message in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(question) = parse(&message) {
                prop_assert!(answer(&question, Answer::NoName).len() <= message.len());
            }
        }
    }
}
