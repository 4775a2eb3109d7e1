//! A VMM that its guest has taken over: a program with the VMM's user, descriptors and confinement tries
//! what such a guest would try. Without the barrier the same program succeeds at everything.

use casemate_machine::Home;
use casemate_machine::backend::qemu::confine::{Confinement, vmm_uid};
use casemate_proto::ids::Cid;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::TcpListener,
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Tries every attack and prints `NAME yes` or `NAME no` for each. Perl is part of every Debian.
const INTRUDER: &str = r#"
use Socket;
my ($home, $image, $image_fd, $socket, $port, $victim, $volume_fd) = @ARGV;
$SIG{XFSZ} = "IGNORE";
sub attempt { my ($name, $done) = @_; print "$name ", ($done ? "yes" : "no"), "\n"; }
sub can_open { my ($mode, $path) = @_; my $ok = open(my $fh, $mode, $path); close $fh if $ok; return $ok; }
attempt("read-home", can_open("<", "$home/config.toml"));
attempt("list-home", opendir(my $dir, $home));
attempt("write-home", can_open(">>", "$home/config.toml"));
attempt("write-image-by-path", can_open(">>", $image));
attempt("write-image-by-descriptor", can_open(">>", "/proc/self/fd/$image_fd"));
attempt("read-passwords", can_open("<", "/etc/shadow"));
attempt("write-tmp", can_open(">", "/tmp/intruder-$$") && unlink("/tmp/intruder-$$"));
socket(my $unix, PF_UNIX, SOCK_STREAM, 0);
attempt("connect-other-machine", connect($unix, pack_sockaddr_un($socket)));
socket(my $tcp, PF_INET, SOCK_STREAM, 0);
attempt("connect-network", connect($tcp, pack_sockaddr_in($port, inet_aton("127.0.0.1"))));
attempt("signal-stranger", kill(0, $victim));
open(my $volume, "+<&=", $volume_fd);
sysseek($volume, 128 << 20, 0);
attempt("grow-volume", syswrite($volume, "more"));
attempt("free-volume", flock($volume, 8));
sysseek($volume, (128 << 20) - 4, 0);
print "volume-writable ", (syswrite($volume, "last") ? "yes" : "no"), "\n";
print "image-readable ", (can_open("<", "/proc/self/fd/$image_fd") ? "yes" : "no"), "\n";
"#;

/// A home with a secret, an image and another machine's socket, and a stranger's process.
struct Scene {
    dir: tempfile::TempDir,
    home: Home,
    image: PathBuf,
    volume: PathBuf,
    socket: PathBuf,
    _other_machine: UnixListener,
    network: TcpListener,
    stranger: std::process::Child,
}

impl Scene {
    fn set() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // As in a real home, only the home itself is closed to others.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        fs::write(home.path().join("config.toml"), "secret").unwrap();
        let image = home.path().join("rootfs.erofs");
        fs::write(&image, "image").unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
        let volume = home.path().join("volume.ext4");
        File::create(&volume).unwrap().set_len(128 << 20).unwrap();
        let socket = home.machines().join("supervisor.sock");
        let other_machine = UnixListener::bind(&socket).unwrap();
        let network = TcpListener::bind("127.0.0.1:0").unwrap();
        let stranger = Command::new("sleep").arg("60").spawn().unwrap();
        Self { dir, home, image, volume, socket, _other_machine: other_machine, network, stranger }
    }

    /// Runs the intruder; `confine` gets its command and the opened image and volume.
    fn intrude(&self, confine: impl FnOnce(&mut Command, File, File)) -> BTreeMap<String, bool> {
        let image = File::open(&self.image).unwrap();
        let volume = File::options().read(true).write(true).open(&self.volume).unwrap();
        volume.lock().unwrap();
        let held = volume.try_clone().unwrap();
        let mut command = Command::new("perl");
        command.args(["-e", INTRUDER]).arg(self.home.path()).arg(&self.image);
        command.arg(image.as_raw_fd().to_string()).arg(&self.socket);
        command.arg(self.network.local_addr().unwrap().port().to_string());
        command.arg(self.stranger.id().to_string()).arg(volume.as_raw_fd().to_string());
        confine(&mut command, image, volume);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let free = File::open(&self.volume).unwrap().try_lock().is_ok();
        drop(held);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let answers = text.lines().map(|line| line.split_once(' ').unwrap());
        let mut did: BTreeMap<String, bool> =
            answers.map(|(name, answer)| (name.to_owned(), answer == "yes")).collect();
        assert_eq!(did.insert("free-volume".to_owned(), free), Some(free));
        did
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stranger.kill().unwrap();
        self.stranger.wait().unwrap();
        assert!(Path::new(self.dir.path()).exists());
    }
}

fn confined(scene: &Scene, uid: Option<u32>) -> BTreeMap<String, bool> {
    scene.intrude(|command, image, volume| {
        let inherit = vec![volume.into()];
        Confinement { uid, without_huge_pages: false, readable: vec![image], inherit }
            .apply(command)
            .unwrap();
        command.env("PATH", "/usr/bin:/bin");
    })
}

#[test]
fn a_vmm_that_was_taken_over_reaches_nothing_but_what_it_was_given() {
    let scene = Scene::set();
    let uid = vmm_uid(&scene.home, Cid(100));
    assert_eq!(uid.is_some(), rustix::process::geteuid().is_root());
    let mut did = confined(&scene, uid);
    for needed in ["image-readable", "volume-writable"] {
        assert_eq!(did.remove(needed), Some(true), "the VMM could not work");
    }
    assert_eq!(did.values().filter(|&&done| done).count(), 0, "{did:?}");
    assert_eq!(did.len(), 12);
}

#[test]
fn landlock_alone_protects_files_where_casemate_is_no_root() {
    let scene = Scene::set();
    let mut did = confined(&scene, None);
    for needed in ["image-readable", "volume-writable"] {
        assert_eq!(did.remove(needed), Some(true), "the VMM could not work");
    }
    // Unix sockets by path are beyond Landlock: an ordinary user's VMM could connect to another machine of
    // the same user. What it finds there is a supervisor that speaks with that user's programs.
    did.remove("connect-other-machine");
    assert_eq!(did.values().filter(|&&done| done).count(), 0, "{did:?}");
}

#[test]
fn without_the_barrier_every_attack_succeeds() {
    let scene = Scene::set();
    let did = scene.intrude(|command, image, volume| {
        // The descriptors are inherited, nothing else is changed.
        for file in [image, volume] {
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
            std::mem::forget(file);
        }
        command.env("PATH", "/usr/bin:/bin");
    });
    let failed: Vec<_> = did.iter().filter(|(_, done)| !**done).collect();
    assert!(failed.is_empty(), "the test proves nothing for {failed:?}");
}
