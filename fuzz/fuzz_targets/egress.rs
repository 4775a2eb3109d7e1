//! Lines of port 5254 and entries of its lists: what is read is written again as it was meant.
#![no_main]

use casemate_proto::egress::{ANSWER_BYTES, Allow, Answer, Forward, REQUEST_BYTES, Request, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(request) = Request::parse(text) {
        let line = request.to_string();
        assert!(line.len() < REQUEST_BYTES && !line.contains('\n'));
        assert_eq!(Request::parse(&line), Ok(request));
    }
    if let Some(answer) = Answer::parse(text) {
        let line = answer.to_string();
        assert!(line.len() < ANSWER_BYTES && !line.contains('\n'));
        assert_eq!(Answer::parse(&line), Some(answer));
    }
    if let Ok(target) = text.parse::<Target>() {
        assert_eq!(target.to_string().parse::<Target>(), Ok(target));
    }
    if let Ok(entry) = text.parse::<Allow>() {
        assert_eq!(entry.to_string().parse::<Allow>(), Ok(entry));
    }
    if let Ok(entry) = text.parse::<Forward>() {
        assert_eq!(entry.to_string().parse::<Forward>(), Ok(entry));
    }
});
