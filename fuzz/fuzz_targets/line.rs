//! Lines of bounded length: the same whatever the chunks.
#![no_main]

use casemate_proto::line::LineBuffer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<&[u8]>)| {
    let (limit, chunks) = (usize::from(input.0), input.1);
    let text = chunks.concat();
    let mut expected: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    let remainder = expected.pop().unwrap_or_default();
    let good = expected.iter().take_while(|line| line.len() <= limit).count();

    let mut buffer = LineBuffer::new(limit);
    let mut seen = Vec::new();
    for chunk in chunks {
        buffer.push(chunk);
        loop {
            match buffer.next_line() {
                Ok(Some(line)) => seen.push(line.to_vec()),
                Ok(None) => break,
                Err(_) => {
                    assert!(seen == expected[..good] && text.len() > limit, "refused too early or too late");
                    return;
                }
            }
        }
    }
    assert_eq!(seen, expected);
    assert_eq!(buffer.remainder(), remainder);
});
