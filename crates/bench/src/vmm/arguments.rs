//! What QEMU's arguments say about descriptors.

use std::collections::BTreeMap;

/// The numbers of the descriptors that an argument names: as `fd=N` or by their path.
pub fn descriptors_in(argument: &str) -> Vec<i32> {
    places(argument).into_iter().filter_map(|(from, to)| argument[from..to].parse().ok()).collect()
}

/// The argument with other numbers for its descriptors.
pub fn renumber(argument: &str, numbers: &BTreeMap<i32, i32>) -> String {
    let (mut text, mut copied) = (String::new(), 0);
    for (from, to) in places(argument) {
        let new = argument[from..to].parse().ok().and_then(|number: i32| numbers.get(&number));
        text += &argument[copied..from];
        text += &new.map_or_else(|| argument[from..to].to_owned(), i32::to_string);
        copied = to;
    }
    text + &argument[copied..]
}

/// Where the numbers of descriptors stand in an argument.
fn places(argument: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for prefix in ["/proc/self/fd/", "fd="] {
        for (at, _) in argument.match_indices(prefix) {
            // Another option's name may end in the same letters.
            let inside_a_word = prefix == "fd=" && at > 0 && !argument[..at].ends_with(',');
            let from = at + prefix.len();
            let length = argument[from..].bytes().take_while(u8::is_ascii_digit).count();
            if length > 0 && !inside_a_word {
                found.push((from, from + length));
            }
        }
    }
    found.sort_unstable();
    found
}

/// The descriptor of the character device behind the first serial port.
pub fn console_of(arguments: &[String]) -> Option<i32> {
    let at = arguments.iter().position(|argument| argument == "-serial")?;
    let device = arguments.get(at + 1)?.strip_prefix("chardev:")?;
    let named = format!("id={device}");
    let backend = arguments.iter().find(|argument| argument.split(',').any(|part| part == named))?;
    descriptors_in(backend).first().copied()
}

/// The set that an argument of `-add-fd` adds to.
pub fn set_of(argument: &str) -> Option<&str> {
    argument.starts_with("fd=").then(|| argument.split(',').find_map(|part| part.strip_prefix("set=")))?
}

/// Removes the descriptors that are there for later, such as the file that a snapshot is written to.
pub fn drop_unused_sets(arguments: &mut Vec<String>) {
    let is_used = |set: &str| {
        let path = format!("/dev/fdset/{set}");
        arguments.iter().flat_map(|argument| argument.split(['=', ','])).any(|part| part == path)
    };
    let unused: Vec<usize> = (1..arguments.len())
        .filter(|&at| arguments[at - 1] == "-add-fd")
        .filter(|&at| set_of(&arguments[at]).is_some_and(|set| !is_used(set)))
        .collect();
    for at in unused.into_iter().rev() {
        arguments.drain(at - 1..=at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn descriptors_are_found_by_number_and_by_path() {
        assert_eq!(descriptors_in("socket,id=link,fd=22"), [22]);
        assert_eq!(descriptors_in("id=root,file.locking=off,file=/proc/self/fd/10"), [10]);
        assert_eq!(descriptors_in("fd=7,set=1"), [7]);
        assert_eq!(descriptors_in("memory-backend-file,xfd=3,mem-path=/proc/self/fd/14,size=256M"), [14]);
        assert!(descriptors_in("kvm,device=/dev/fdset/1").is_empty());
    }

    #[test]
    fn new_numbers_may_be_longer_and_may_be_others_old_ones() {
        let numbers = BTreeMap::from([(3, 140), (140, 3)]);
        assert_eq!(renumber("a=/proc/self/fd/3,b=/proc/self/fd/140", &numbers), {
            "a=/proc/self/fd/140,b=/proc/self/fd/3"
        });
        assert_eq!(renumber("fd=140", &numbers), "fd=3");
        assert_eq!(renumber("fd=5", &numbers), "fd=5");
    }

    #[test]
    fn sets_that_nothing_opens_are_left_out() {
        let words = ["-add-fd", "fd=7,set=1", "-accel", "kvm,device=/dev/fdset/1", "-add-fd", "fd=15,set=3"];
        let mut arguments: Vec<String> = words.map(str::to_owned).to_vec();
        drop_unused_sets(&mut arguments);
        assert_eq!(arguments, words[..4]);
        assert_eq!(set_of("fd=7,set=1"), Some("1"));
        assert_eq!(set_of("socket,id=link,fd=7"), None);
    }

    #[test]
    fn the_console_is_the_device_of_the_serial_port() {
        let words = ["-chardev", "socket,id=link,fd=22", "-chardev", "socket,id=console,fd=20"];
        let mut arguments: Vec<String> = words.map(str::to_owned).to_vec();
        assert_eq!(console_of(&arguments), None);
        arguments.extend(["-serial".to_owned(), "chardev:console".to_owned()]);
        assert_eq!(console_of(&arguments), Some(20));
    }

    fn part() -> impl Strategy<Value = String> {
        prop_oneof!["[a-zä=,/]{0,6}", ",fd=[1-9][0-9]{0,3}", "/proc/self/fd/[1-9][0-9]{0,3}"]
    }

    proptest! {
        #[test]
        fn any_argument_survives_the_same_numbers(parts in prop::collection::vec(part(), 0..8)) {
            let argument = parts.concat();
            let same = descriptors_in(&argument).into_iter().map(|number| (number, number)).collect();
            prop_assert_eq!(renumber(&argument, &same), argument);
        }
    }
}
