//! From a wish for a machine to the template that it is restored from: found, waited for, or built.

use super::{Ingredients, KeyError, Level, Manifest, Outcome, TemplateError, Templates};
use crate::{
    client::{self, LaunchError},
    home::Home,
    leash::Built,
    record::State,
    spec::{Lifetime, Origin, Restart, Spec},
};
use casemate_proto::control::Transport;
use std::{fs::File, time::Duration};

/// How often a builder starts its server, at most.
const SERVER_STARTS: u64 = 3;

/// What is being done for a machine that starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Another command builds the template that is needed.
    AwaitingTemplate,
    /// A machine is made to become a template.
    BuildingTemplate(State),
    /// The machine itself came to its next phase.
    Phase(State),
}

/// Finds the template that this machine can be restored from, or builds it. Twenty who ask at once get one.
///
/// Answers a cold start where there can be none, with the reason. A server that does not even start is an
/// error here already.
pub async fn obtain(home: &Home, spec: &Spec, mut progress: impl FnMut(Step)) -> Result<Origin, LaunchError> {
    let mut reason = None;
    let levels = match spec.workload.as_ref().map(|workload| workload.reseed) {
        None => return Ok(Origin::Cold { reason: "nothing runs in it".to_owned() }),
        // A server that runs may have looked at it.
        Some(_) if spec.workload.as_ref().is_some_and(|workload| !workload.volumes.is_empty()) => {
            reason = Some(KeyError::Volume.to_string());
            &[Level::Agent][..]
        }
        // Of what it was given, a server that runs keeps copies wherever it likes.
        Some(_) if spec.workload.as_ref().is_some_and(|workload| !workload.secrets.is_empty()) => {
            reason = Some("a server that is given secrets starts in each machine".to_owned());
            &[Level::Agent][..]
        }
        // Whether one that listens rests cannot be told by what it has read.
        Some(_) if spec.workload.as_ref().is_some_and(|workload| workload.transport != Transport::Stdio) => {
            reason = Some("a server that is reached by HTTP starts in each machine".to_owned());
            &[Level::Agent][..]
        }
        Some(Some(_)) => &[Level::Server, Level::Agent][..],
        // Its random numbers could repeat.
        Some(None) => &[Level::Agent][..],
    };
    for &level in levels {
        match ensure(home, spec, level, &mut progress).await {
            Ok(Ok(key)) => return Ok(Origin::Template { key, level, reason }),
            Ok(Err(refusal)) => reason = Some(refusal),
            Err(Failure::Launch(error)) => return Err(error),
            // A machine that starts slowly is better than none.
            Err(Failure::Template(error)) => {
                return Ok(Origin::Cold { reason: crate::supervisor::chain(&error) });
            }
            Err(Failure::Unwritten(reason)) => return Ok(Origin::Cold { reason }),
        }
    }
    // There is a level: without one nothing runs in it.
    Ok(Origin::Cold { reason: reason.unwrap_or_default() })
}

/// Why no template was obtained, though there could be one.
enum Failure {
    Launch(LaunchError),
    Template(TemplateError),
    Unwritten(String),
}

impl<E: Into<TemplateError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Template(error.into())
    }
}

async fn ensure(
    home: &Home,
    spec: &Spec,
    level: Level,
    progress: &mut impl FnMut(Step),
) -> Result<Result<String, String>, Failure> {
    let templates = Templates::open(home)?;
    let ingredients = Ingredients::of(spec, level, &templates.secret()?)?;
    let key = ingredients.key();
    if let Some(found) = find(&templates, &key).await {
        return Ok(found);
    }
    let lock = match templates.try_lock(&key)? {
        Some(lock) => lock,
        None => {
            progress(Step::AwaitingTemplate);
            // What a builder is given, and once more for what comes before and after it.
            let patience = Duration::from_millis(spec.deadline_ms.saturating_mul(SERVER_STARTS + 1));
            templates.lock(&key, patience).await?
        }
    };
    if let Some(found) = find(&templates, &key).await {
        return Ok(found);
    }
    build(home, &templates, spec, ingredients, lock, progress).await
}

/// The template's key, if it is there and whole, or why there is none. At its first use since the host was started
/// all of its memory is read, which holds up nobody else.
async fn find(templates: &Templates, key: &str) -> Option<Result<String, String>> {
    let (templates, wanted) = (templates.clone(), key.to_owned());
    let checked = tokio::task::spawn_blocking(move || templates.check(&wanted, false)).await;
    let manifest = checked.ok()?.ok()?;
    match (&manifest.outcome, manifest.refusal()) {
        (Outcome::Made(_), _) => Some(Ok(key.to_owned())),
        (_, Some(reason)) => Some(Err(reason.to_owned())),
        _ => None,
    }
}

async fn build(
    home: &Home,
    templates: &Templates,
    spec: &Spec,
    ingredients: Ingredients,
    lock: File,
    progress: &mut impl FnMut(Step),
) -> Result<Result<String, String>, Failure> {
    let (key, level) = (ingredients.key(), ingredients.level);
    templates.sweep();
    let folder = templates.begin(&key)?;
    // Ten digits of the key and the folder's own, which no other builder has.
    let name = format!("template.{}{}", &key[..10], folder[key.len()..].trim_end_matches(".partial")).parse();
    let builder = Spec {
        // Hexadecimal digits are a name.
        name: name.map_err(|_| TemplateError::Missing(key.clone()))?,
        origin: Origin::Builder { folder: folder.clone(), level },
        lifetime: Lifetime::Leased,
        idle_ms: None,
        deadline_ms: spec.deadline_ms.saturating_mul(SERVER_STARTS),
        restart: Restart::Never,
        ..spec.clone()
    };
    let built = client::build(home, &builder, |state| progress(Step::BuildingTemplate(state))).await;
    let outcome = match built {
        Ok(Built::Made(contents)) => Outcome::Made(contents),
        Ok(Built::Refused { reason }) => Outcome::Refused { reason },
        Ok(Built::Unwritten { reason }) => {
            templates.abandon(&folder);
            return Err(Failure::Unwritten(reason));
        }
        Err(error) => {
            // What it wrote is nobody's.
            templates.abandon(&folder);
            return Err(Failure::Launch(error));
        }
    };
    let manifest = Manifest {
        key: key.clone(),
        ingredients,
        server: spec.server.clone(),
        created_at: jiff::Timestamp::now(),
        outcome,
    };
    let published = templates.publish(&manifest, &folder);
    if published.is_err() {
        templates.abandon(&folder);
    }
    published?;
    drop(lock);
    // Room for the next one; a failure is for the next command that prunes.
    let _ = templates.prune(&super::Policy::default());
    Ok(match manifest.outcome {
        Outcome::Made(_) => Ok(key),
        Outcome::Refused { reason } => Err(reason),
    })
}
