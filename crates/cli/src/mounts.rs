//! Folders and volumes as people write them: `HOST:GUEST[:ro|rw]`, `NAME:GUEST[:SIZE]`.

use crate::units::{InvalidSize, Size};
use casemate_proto::{
    ids::{InvalidName, Name},
    mount::{InvalidTarget, Target},
};
use std::{fmt, path::PathBuf, str::FromStr};

/// A folder of the host that a server is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderWish {
    /// The folder: absolute, or below the home of the user (`~/`).
    pub host: PathBuf,
    /// Where it is inside the machine.
    pub target: Target,
    /// The server is to change it.
    pub writable: bool,
}

/// A volume that a server is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeWish {
    /// Its name.
    pub name: Name,
    /// Where it is inside the machine.
    pub target: Target,
    /// What it is to hold, if that was said.
    pub size: Option<Size>,
}

/// Why a text names no folder and no volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMount {
    /// A folder's parts are not there.
    #[error(
        "write HOST:GUEST, such as /srv/data:/data; what the server is to change is a volume (--volume NAME:GUEST)"
    )]
    FolderForm,
    /// A volume's parts are not there.
    #[error("write NAME:GUEST, such as notes:/data, and :SIZE after it for another size than 1GiB")]
    VolumeForm,
    /// The folder depends on where one is.
    #[error("{0:?} is no absolute path of this host")]
    Relative(PathBuf),
    /// It cannot be mounted there.
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    /// No volume has such a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// No volume has such a size.
    #[error(transparent)]
    Size(#[from] InvalidSize),
}

impl FolderWish {
    /// The folder and where it is, told apart already.
    pub fn new(host: &str, target: &str, writable: bool) -> Result<Self, InvalidMount> {
        let host = PathBuf::from(host);
        if !host.is_absolute() && !host.starts_with("~") {
            return Err(InvalidMount::Relative(host));
        }
        Ok(Self { host, target: target.parse()?, writable })
    }

    /// Reads what stands on the command line, where a path may begin in the current folder.
    pub fn here(text: &str) -> Result<Self, InvalidMount> {
        let (host, target, writable) = split(text)?;
        // A path without a current folder stays as it is, and is refused.
        let host = std::path::absolute(host).unwrap_or_else(|_| host.into());
        Ok(Self { target: target.parse()?, host, writable })
    }

    /// The folder's path on this host.
    pub fn path(&self) -> PathBuf {
        match (self.host.strip_prefix("~"), std::env::home_dir()) {
            (Ok(below), Some(home)) => home.join(below),
            _ => self.host.clone(),
        }
    }
}

/// The parts of `HOST:GUEST[:ro|rw]`. Colons in HOST are its own.
fn split(text: &str) -> Result<(&str, &str, bool), InvalidMount> {
    let (rest, writable) = match (text.strip_suffix(":rw"), text.strip_suffix(":ro")) {
        (Some(rest), _) => (rest, true),
        (_, Some(rest)) => (rest, false),
        _ => (text, false),
    };
    match rest.rsplit_once(':') {
        Some((host, target)) if !host.is_empty() && !target.is_empty() => Ok((host, target, writable)),
        _ => Err(InvalidMount::FolderForm),
    }
}

impl FromStr for FolderWish {
    type Err = InvalidMount;

    fn from_str(text: &str) -> Result<Self, InvalidMount> {
        let (host, target, writable) = split(text)?;
        Self::new(host, target, writable)
    }
}

impl fmt::Display for FolderWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.writable { "rw" } else { "ro" };
        write!(f, "{}:{}:{access}", self.host.display(), self.target)
    }
}

impl FromStr for VolumeWish {
    type Err = InvalidMount;

    fn from_str(text: &str) -> Result<Self, InvalidMount> {
        let mut parts = text.splitn(3, ':');
        let (Some(name), Some(target)) = (parts.next(), parts.next()) else {
            return Err(InvalidMount::VolumeForm);
        };
        let size = parts.next().map(str::parse).transpose()?;
        Ok(Self { name: name.parse()?, target: target.parse()?, size })
    }
}

impl fmt::Display for VolumeWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.target)?;
        match self.size {
            // Whole KiB at least: written as they are read, and rounded up by those who make volumes.
            Some(Size(bytes)) => write!(f, ":{}KiB", bytes.div_ceil(1024)),
            None => Ok(()),
        }
    }
}

/// Adds wishes of the command line to those of a file: one with the same place inside takes its place.
pub fn overrule<T: Clone>(written: &[T], said: &[T], target: impl Fn(&T) -> &Target) -> Vec<T> {
    let is_overruled = |wish: &&T| said.iter().any(|other| target(other) == target(wish));
    written.iter().filter(|wish| !is_overruled(wish)).chain(said).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(text: &str) -> Result<String, InvalidMount> {
        text.parse::<FolderWish>().map(|wish| wish.to_string())
    }

    #[test]
    fn folders_are_read_only_unless_they_say_otherwise() {
        assert_eq!(folder("/a:/b").unwrap(), "/a:/b:ro");
        assert_eq!(folder("/a:/b:ro").unwrap(), "/a:/b:ro");
        assert_eq!(folder("/a:/b/:rw").unwrap(), "/a:/b:rw");
        assert_eq!(folder("/with:colon:/b").unwrap(), "/with:colon:/b:ro");
        let home = std::env::home_dir().unwrap();
        assert_eq!("~/x:/b".parse::<FolderWish>().unwrap().path(), home.join("x"));
        for wrong in ["", "/a", "/a:", ":/b", ":ro", "/a:ro"] {
            assert_eq!(folder(wrong), Err(InvalidMount::FolderForm), "{wrong}");
        }
        assert!(matches!(folder("a:/b"), Err(InvalidMount::Relative(_))));
        assert!(matches!(folder("/a:b"), Err(InvalidMount::Target(InvalidTarget::Relative(_)))));
        assert!(matches!(folder("/a:/proc"), Err(InvalidMount::Target(InvalidTarget::Taken { .. }))));
    }

    #[test]
    fn a_path_on_the_command_line_begins_where_one_is() {
        let here = FolderWish::here("x:/b").unwrap();
        assert_eq!(here.host, std::env::current_dir().unwrap().join("x"));
    }

    #[test]
    fn volumes_have_a_name_a_place_and_perhaps_a_size() {
        let read = |text: &str| text.parse::<VolumeWish>();
        assert_eq!(read("v:/data").unwrap().size, None);
        let sized = read("v:/data:64MiB").unwrap();
        assert_eq!(sized.size, Some(Size(64 << 20)));
        assert_eq!(sized.to_string().parse(), Ok(sized));
        assert_eq!(read("v"), Err(InvalidMount::VolumeForm));
        assert!(matches!(read("../v:/data"), Err(InvalidMount::Name(_))));
        assert!(matches!(read("v:data"), Err(InvalidMount::Target(_))));
        assert!(matches!(read("v:/data:64"), Err(InvalidMount::Size(_))));
        assert!(matches!(read("v:/data:1GiB:ro"), Err(InvalidMount::Size(_))));
    }

    #[test]
    fn what_is_said_takes_the_place_of_what_is_written() {
        let read =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<VolumeWish>>();
        let both = overrule(&read(&["a:/x", "b:/y"]), &read(&["c:/y", "d:/z"]), |wish| &wish.target);
        assert_eq!(both, read(&["a:/x", "c:/y", "d:/z"]));
    }
}
