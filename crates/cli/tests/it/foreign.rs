//! Programs that nobody here wrote, out of images, run outside of machines: clients.

use crate::home::{Home, casemate, finish};
use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// The unpacked image of a program.
pub struct Unpacked {
    tree: PathBuf,
    meta: Value,
}

impl Unpacked {
    /// Builds an image, with the words of `casemate image build`, and unpacks it below the home.
    pub fn build(home: &Home, words: &[&str]) -> Self {
        let built = casemate(home, &[&["image", "build", "--json"], words].concat());
        assert_eq!(built.code, 0, "{}", built.stderr);
        let meta: Value = serde_json::from_str(&built.stdout).unwrap();
        let digest = meta["digest"].as_str().unwrap().trim_start_matches("sha256:");
        let tree = home.path().join("unpacked").join(digest);
        if !tree.exists() {
            let mut extract = Command::new("fsck.erofs");
            std::fs::create_dir_all(tree.parent().unwrap()).unwrap();
            extract.arg(format!("--extract={}", tree.display()));
            extract.arg(home.path().join("images").join(digest).join("rootfs.erofs"));
            extract.stdout(Stdio::piped()).stderr(Stdio::piped());
            let extracted = finish(extract, b"");
            assert_eq!(extracted.code, 0, "{}{}", extracted.stdout, extracted.stderr);
        }
        Self { tree, meta }
    }

    /// The files of its command, for one that has to start programs of the host.
    pub fn files(&self) -> Vec<PathBuf> {
        let words = self.meta["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        words.map(|word| self.tree.join(word.trim_start_matches('/'))).collect()
    }

    /// Starts it with the tree as its root, in the host's network.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--root"]);
        command.arg(&self.tree).arg("--wd").arg(self.meta["cwd"].as_str().unwrap());
        command.args(texts(&self.meta["command"])).args(arguments).env_clear();
        for (name, value) in self.meta["env"].as_object().unwrap() {
            command.env(name, value.as_str().unwrap());
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}
