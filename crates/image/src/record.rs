//! Small records in the cache: what was found out, and when. A missing, old or damaged one is found out
//! again.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::files::{FilesError, failed};
use crate::partial::write_atomically;

/// How long a registry's answer about something that moves on is reused.
pub(crate) const REUSE: Duration = Duration::from_secs(24 * 3600);

/// The largest record that is read back.
const RECORD_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Record<T> {
    /// In seconds since 1970.
    written_at: u64,
    value: T,
}

/// The recorded value, however old.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    load(path).map(|record| record.value)
}

/// The recorded value, if it was written within the last `age`.
pub(crate) fn read_recent<T: DeserializeOwned>(path: &Path, age: Duration) -> Option<T> {
    let record: Record<T> = load(path)?;
    // One from the future was written under a wrong clock.
    let written = now().checked_sub(record.written_at)?;
    (written < age.as_secs()).then_some(record.value)
}

/// Records a value.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<(), FilesError> {
    let json = serde_json::to_vec(&Record { written_at: now(), value });
    json.map_err(Into::into).and_then(|json| write_atomically(path, &json)).map_err(failed("write", path))
}

fn load<T: DeserializeOwned>(path: &Path) -> Option<Record<T>> {
    if fs::metadata(path).ok()?.len() > RECORD_BYTES {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_while_it_is_young_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        assert_eq!(read::<String>(&path), None);
        write(&path, &"value").unwrap();
        assert_eq!(read::<String>(&path).as_deref(), Some("value"));
        assert_eq!(read_recent::<String>(&path, Duration::from_secs(60)).as_deref(), Some("value"));
        assert_eq!(read_recent::<String>(&path, Duration::ZERO), None);
        assert_eq!(read::<u64>(&path), None);
        fs::write(&path, r#"{"written_at":99999999999999,"value":"x"}"#).unwrap();
        assert_eq!(read_recent::<String>(&path, Duration::from_secs(60)), None);
        fs::write(&path, r#"{"written_at"#).unwrap();
        assert_eq!(read::<String>(&path), None);
    }
}
