//! The real kernel package of Debian, from the mirror to the files that boot.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use casemate_image::kernel::{self, Kernel, KernelError, Source};
use casemate_image::progress::Silent;
use casemate_image::registry::address::Registries;

use crate::home::{Home, shared_home};

const AGENT: &[u8] = b"the agent";

fn fetched(home: &Home) -> Kernel {
    kernel::fetch(home.path(), &Registries::default(), AGENT, &Silent).unwrap()
}

#[test]
fn debians_kernel_is_fetched_and_can_be_booted() {
    let home = shared_home();
    let kernel = fetched(&home);
    println!("{kernel:?}");
}
