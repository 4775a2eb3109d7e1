//! Clones of one template share no random number, and would without what is done about it.
//!
//! Two machines are restored by hand from the memory and the devices of one machine whose server has drawn
//! from each of its generators, so that what generators keep ahead is there:
//!
//! | treatment | numbers of the runtime | numbers of the kernel |
//! | --- | --- | --- |
//! | nothing | equal | equal |
//! | the kernel reseeded, no hooks | equal | differ |
//! | the kernel reseeded, with the hooks | differ | differ |
//!
//! The first two show that the third can fail. What the program itself does with templates is looked at from
//! outside, in machines that it has started.

mod machine;
mod program;
mod sources;

use crate::home::Home;
use casemate_image::source::Source;
use casemate_proto::control::Reseed;
use machine::{Clone, Template, Treatment};
use serde_json::{Map, Value};

/// Numbers whose names begin so come from the kernel.
const KERNEL: &str = "kernel: ";

/// How often clones are looked at that should be equal in what the kernel gave: one of them may have drawn
/// after its kernel had reseeded itself, as it does every few seconds.
const LOOKS: usize = 4;

/// How many templates are made for that: one whose kernel was about to reseed itself gives no equal clones.
const TEMPLATES: usize = 4;

#[tokio::test]
async fn node() {
    check(|_| Source::Dir(sources::fixture("node")), Reseed::Node).await;
}

#[tokio::test]
async fn python() {
    check(|_| Source::Dir(sources::fixture("python")), Reseed::Python).await;
}

/// A template of last year, and one of a host whose clock was a year ahead.
#[tokio::test]
async fn a_clone_lives_when_it_is_adopted() {
    let template = template(|_| Source::Dir(sources::fixture("node")), Some(Reseed::Node)).await;
    for days in [366, -366] {
        let clone = Clone::of(&template, Treatment::AdoptedDaysLater(days)).await;
        let clock = clone.call("clock").await;
        let told = clock["now_ms"].as_u64().unwrap();
        let expected = machine::in_days(days).as_millis() as u64;
        assert!(told.abs_diff(expected) < 60_000, "{told} ms instead of {expected} ms");
        // A kernel that has stopped trusting its counter, which jumped too, ticks 250 times a second for ever.
        assert!(clock["ticks"].as_u64().unwrap() < 125, "{clock:?}");
    }
}

/// Nothing can be preloaded into a static program: an OpenSSL that has drawn draws the same in each clone,
/// whatever is done. So such a program is started in each machine anew.
#[tokio::test]
async fn a_static_openssl_cannot_be_helped() {
    let program = |home: &Home| Source::Command(vec![sources::compile_openssl(home)]);
    let template = template(program, Some(Reseed::Kernel)).await;
    let (one, other) = draws(&template, Treatment::Adopted).await;
    compare(&one, &other, |name| name.starts_with(KERNEL));
}

async fn check(source: impl Fn(&Home) -> Source, kind: Reseed) {
    let mut bare = template(&source, None).await;
    let (mut one, mut other) = draws(&bare, Treatment::Nothing).await;
    for look in 1..LOOKS * TEMPLATES {
        if one == other {
            break;
        }
        compare(&runtimes(&one), &runtimes(&other), |_| false);
        if look % LOOKS == 0 {
            bare = template(&source, None).await;
        }
        (one, other) = draws(&bare, Treatment::Nothing).await;
    }
    compare(&one, &other, |_| false);
    let (one, other) = draws(&bare, Treatment::Adopted).await;
    compare(&one, &other, |name| name.starts_with(KERNEL));

    let hooked = template(&source, Some(kind)).await;
    let (one, other) = draws(&hooked, Treatment::Adopted).await;
    compare(&one, &other, |_| true);
}

async fn template(source: impl Fn(&Home) -> Source, reseed: Option<Reseed>) -> Template {
    let home = Home::new();
    let image = sources::image(&home, source(&home));
    Template::of(home, image, reseed).await
}

/// What two clones of a template draw.
async fn draws(template: &Template, treatment: Treatment) -> (Map<String, Value>, Map<String, Value>) {
    let one = Clone::of(template, treatment).await.draw().await;
    (one, Clone::of(template, treatment).await.draw().await)
}

fn runtimes(drawn: &Map<String, Value>) -> Map<String, Value> {
    drawn.iter().filter(|(name, _)| !name.starts_with(KERNEL)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// Each number differs or not, as is said of its name.
fn compare(one: &Map<String, Value>, other: &Map<String, Value>, differs: impl Fn(&str) -> bool) {
    assert!(!one.is_empty());
    assert!(one.keys().eq(other.keys()), "{one:?} and {other:?}");
    let wrong = |(name, value): &(&String, &Value)| (*value != &other[*name]) != differs(name);
    let wrong: Vec<String> =
        one.iter().filter(wrong).map(|(n, v)| format!("{n}: {v}, {}", other[n])).collect();
    assert!(wrong.is_empty(), "equal where they should differ, or the other way round: {wrong:#?}");
}
