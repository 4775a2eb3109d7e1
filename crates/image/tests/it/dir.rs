//! Images of folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use casemate_image::build::{BuildError, BuildErrorKind, BuildRequest, build};
use casemate_image::progress::Silent;
use casemate_image::registry::address::Registries;
use casemate_image::store::{Image, Runtime, Store};

use crate::home::shared_home;
use crate::image::{Heard, built, output, request};

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn dir(folder: &Path) -> BuildRequest<'static> {
    request(&format!("dir:{}", folder.display()))
}

fn run(store: &Store, image: &Image) -> String {
    let argv: Vec<&str> = image.meta.command.iter().map(String::as_str).collect();
    output(store, image, &argv, "")
}

#[test]
fn a_node_project_brings_its_packages_and_starts_as_its_manifest_says() {
    let project = folder(&[
        (
            "package.json",
            r#"{"name":"p","version":"1.0.0","type":"module","scripts":{"start":"node src/main.js 'a b'"},
                "dependencies":{"left-pad":"1.3.0"},"devDependencies":{"is-odd":"3.0.1"}}"#,
        ),
        ("src/main.js", "import pad from 'left-pad'; console.log(pad(process.argv[2], 5, '-'))"),
        ("node_modules/left-pad/index.js", "throw new Error('the host\\'s copy')"),
        (".npmrc", "registry=http://127.0.0.1:9/\n//127.0.0.1:9/:_authToken=secret\n"),
        (".git/config", "secret"),
    ]);
    symlink("/etc/passwd", project.path().join("src/outside")).unwrap();
    symlink("main.js", project.path().join("src/inside")).unwrap();
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let heard = Heard::default();
    let image = build(&store, &Registries::default(), &dir(project.path()), &heard).unwrap();
    assert_eq!(image.meta.command, ["/usr/bin/node", "src/main.js", "a b"]);
    assert_eq!(run(&store, &image), "--a b\n");
    assert!(heard.noted("outside"), "{:?}", heard.notes.lock().unwrap());
    let app = store.unpacked(&image).unwrap().join("app");
    for absent in [".git", ".npmrc", "src/outside", "node_modules/is-odd"] {
        assert!(fs::symlink_metadata(app.join(absent)).is_err(), "{absent} was taken");
    }
    assert_eq!(fs::read_link(app.join("src/inside")).unwrap(), Path::new("main.js"));

    // The folder as it is now, not as it was.
    fs::write(project.path().join("src/main.js"), "console.log('changed')").unwrap();
    let changed = built(&store, &dir(project.path())).unwrap();
    assert_ne!(changed.digest, image.digest);
    assert_eq!(run(&store, &changed), "changed\n");
}

#[test]
fn a_lock_file_of_the_project_is_followed() {
    let manifest = r#"{"name":"p","version":"1.0.0","main":"m.js","dependencies":{"left-pad":"^1.0.0"}}"#;
    let lock = r#"{"name":"p","version":"1.0.0","lockfileVersion":3,"requires":true,"packages":{
        "":{"name":"p","version":"1.0.0","dependencies":{"left-pad":"^1.0.0"}},
        "node_modules/left-pad":{"version":"1.1.3"}}}"#;
    let main = "console.log(require('left-pad/package.json').version)";
    let project = folder(&[("package.json", manifest), ("package-lock.json", lock), ("m.js", main)]);
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let image = built(&store, &dir(project.path())).unwrap();
    assert_eq!(run(&store, &image), "1.1.3\n");

    let damaged = lock.replace("node_modules/left-pad", "../../left-pad");
    fs::write(project.path().join("package-lock.json"), damaged).unwrap();
    let error = built(&store, &dir(project.path())).unwrap_err();
    assert!(matches!(error, BuildError::Malformed { .. }), "{error}");
}

#[test]
fn a_python_project_brings_its_packages_and_its_script() {
    let project = folder(&[
        (
            "pyproject.toml",
            "[project]\nname='p'\nversion='1'\ndependencies=['six==1.17.0']\n[project.scripts]\nserve='p.cli:main'\n",
        ),
        ("src/p/__init__.py", ""),
        ("src/p/cli.py", "import six, sys\ndef main(): print(six.__version__, __cached__ is not None)\n"),
    ]);
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let image = built(&store, &dir(project.path())).unwrap();
    assert_eq!(image.meta.runtime, Runtime::Python);
    assert_eq!(run(&store, &image), "1.17.0 True\n");
    let other = BuildRequest {
        command: Some(["python", "-c", "import p.cli; print('ok')"].map(str::to_owned).into()),
        ..dir(project.path())
    };
    assert_eq!(run(&store, &built(&store, &other).unwrap()), "ok\n");
}

#[test]
fn another_folder_needs_a_command_which_brings_its_libraries() {
    let project = folder(&[("data", "x")]);
    fs::create_dir(project.path().join("bin")).unwrap();
    fs::copy("/bin/cat", project.path().join("bin/show")).unwrap();
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let with = |command: &[&str]| BuildRequest {
        command: Some(command.iter().map(|word| word.to_string()).collect()),
        ..dir(project.path())
    };
    let image = built(&store, &with(&["./bin/show", "data"])).unwrap();
    assert_eq!(image.meta.command, ["/app/bin/show", "data"]);
    assert_eq!(image.meta.runtime, Runtime::Native);
    assert_eq!(run(&store, &image), "x");

    for (request, reason) in [
        (dir(project.path()), "no package.json"),
        (with(&["/bin/cat"]), "outside of it"),
        (with(&["bin/none"]), "has no file"),
        (with(&["./data"]), "neither an ELF program nor a script"),
        (dir(&project.path().join("none")), "cannot be read"),
    ] {
        let error = built(&store, &request).unwrap_err();
        assert_eq!(error.kind(), BuildErrorKind::Configuration);
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_command_brings_the_runtime_that_it_names() {
    let project = folder(&[
        ("server.js", "console.log(process.argv[2], require('./part'))"),
        ("part.js", "module.exports = 'part'"),
        ("server.py", "import six, sys; print(sys.argv[1], six.__version__)"),
        ("requirements.txt", "# what it needs\n\nsix==1.17.0\n"),
    ]);
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let with = |command: &str| BuildRequest {
        command: Some(command.split(' ').map(str::to_owned).collect()),
        ..dir(project.path())
    };
    let node = built(&store, &with("node server.js a")).unwrap();
    assert_eq!((node.meta.runtime, &*run(&store, &node)), (Runtime::Node, "a part\n"));
    let python = built(&store, &with("python3 server.py b")).unwrap();
    assert_eq!((python.meta.runtime, &*run(&store, &python)), (Runtime::Python, "b 1.17.0\n"));

    fs::write(project.path().join("requirements.txt"), "six\n--index-url http://127.0.0.1:9/\n").unwrap();
    let error = built(&store, &with("python3 server.py b")).unwrap_err();
    assert!(error.to_string().contains("--index-url"), "{error}");
}

#[test]
fn a_project_that_cannot_start_or_must_be_built_is_refused_with_the_remedy() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    for (files, part) in [
        (vec![("package.json", r#"{"name":"p","main":"dist/x.js"}"#)], "build the project first"),
        (vec![("package.json", "{")], "malformed"),
        (vec![("pyproject.toml", "[build-system]\nbuild-backend='maturin'\n")], "build a wheel"),
        (vec![("pyproject.toml", "[project]\nname='p'\n[project.scripts]\na='nowhere:main'\n")], "nowhere"),
        (vec![("pyproject.toml", "[project]\nname='p'\n")], "--command"),
    ] {
        let project = folder(&files);
        let error = build(&store, &Registries::default(), &dir(project.path()), &Silent).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(store.images().unwrap().len(), 0);
}
