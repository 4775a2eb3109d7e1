//! How Debian orders versions (Debian Policy 5.6.12): `[epoch:]upstream[-revision]`.

use std::cmp::Ordering;

/// Compares two versions as `dpkg` does. Total, also over text that is no version.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a_epoch, a_upstream, a_revision) = split(a);
    let (b_epoch, b_upstream, b_revision) = split(b);
    compare_digits(a_epoch, b_epoch)
        .then_with(|| compare_part(a_upstream, b_upstream))
        .then_with(|| compare_part(a_revision, b_revision))
}

fn split(version: &str) -> (&[u8], &[u8], &[u8]) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch.as_bytes(), upstream.as_bytes(), revision.as_bytes())
}

/// Alternates between a stretch without digits and a stretch of digits.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (a_text, a_rest) = span(a, |byte| !byte.is_ascii_digit());
        let (b_text, b_rest) = span(b, |byte| !byte.is_ascii_digit());
        let (a_digits, a_rest) = span(a_rest, |byte| byte.is_ascii_digit());
        let (b_digits, b_rest) = span(b_rest, |byte| byte.is_ascii_digit());
        let order = compare_text(a_text, b_text).then_with(|| compare_digits(a_digits, b_digits));
        if order.is_ne() {
            return order;
        }
        (a, b) = (a_rest, b_rest);
    }
    Ordering::Equal
}

fn span(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.iter().position(|&byte| !belongs(byte)).unwrap_or(bytes.len()))
}

/// `~` sorts before the end, the end before letters, letters before everything else.
fn compare_text(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(*letter),
        Some(other) => i32::from(*other) + 256,
    };
    (0..a.len().max(b.len()))
        .map(|at| rank(a.get(at)).cmp(&rank(b.get(at))))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn compare_digits(a: &[u8], b: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| digits.iter().take_while(|&&digit| digit == b'0').count();
    let (a, b) = (&a[significant(a)..], &b[significant(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_orders() {
        // Ascending.
        let sorted = [
            "0~~",
            "0~",
            "0",
            "0.9",
            "0.10",
            "1.0~rc1-1",
            "1.0-1",
            "1.0-1+deb12u1",
            "1.0-1+deb12u2",
            "1.0-2",
            "1.0a",
            "1.0+b",
            "6.1.9-1",
            "6.1.192-2",
            "6.12.1-1",
            "1:0.1",
        ];
        for (low, a) in sorted.iter().enumerate() {
            for (high, b) in sorted.iter().enumerate() {
                assert_eq!(compare(a, b), low.cmp(&high), "{a} and {b}");
            }
        }
        assert_eq!(compare("1.01", "1.1"), Ordering::Equal);
        assert_eq!(compare("0:1", "1"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn is_an_order(a in "[0-2a~.:+-]{0,6}", b in "[0-2a~.:+-]{0,6}", c in "[0-2a~.:+-]{0,6}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le());
            }
        }
    }
}
