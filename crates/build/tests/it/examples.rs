//! The examples, locked and fetched for real, built, rebuilt, and asked for a page.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use adamant_build::{Export, Job};
use adamant_digest::{Digest, Entry, EntryKind, Tree};
use adamant_fetch::{Config, Fetcher};
use adamant_recipe::{Recipe, cargo};
use adamant_store::FsBlobs;

use crate::cases::{Case, block_on};
use crate::setup::{Site, directory, listen};

pub(crate) const ALL: &[(&str, Case)] = &[
    ("the example shop", || example("shop", "version 1.0.0")),
    ("the example mini-httpd, a C program nobody here wrote", || example("mini-httpd", "Served by mini_httpd")),
    ("long: the example file-server, a Rust program nobody here wrote", || {
        example("file-server", "Served by simple-http-server")
    }),
];

fn example(name: &str, page: &str) -> Option<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    let text = fs::read_to_string(source.join("adamant.toml")).expect("recipe");
    let recipe = Recipe::parse(&text, &|path| source.join(path).exists()).expect("recipe");
    let crates = match fs::read_to_string(source.join("Cargo.lock")) {
        Ok(text) => cargo::parse(&text).expect("Cargo.lock").crates,
        Err(_) => Vec::new(),
    };
    // Kept between runs: the second needs no network.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("inputs");
    fs::create_dir_all(&kept).expect("directory");
    let blobs = Arc::new(FsBlobs::open(&kept).expect("store"));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let fetcher = Fetcher::new(Config::default(), blobs.clone()).expect("fetcher");
    let locked = match block_on(fetcher.resolve_lock(&recipe, &crates, None, false, &|_| ())) {
        Ok(locked) => locked,
        Err(error) => return Some(error.to_string()),
    };
    let dir = directory();
    let data = dir.path().join("data");
    let builder = Site::open(&data, blobs.clone());
    let (tree, export) = export(&source);
    let job = Job::new(&recipe, "web", &locked.lock, &crates, tree, export).expect("job");
    let (sink, lines) = listen();
    let built = match block_on(builder.build(&job, sink)) {
        Ok(built) => built,
        Err(error) if error.to_string().contains("sandbox") => return Some(error.to_string()),
        Err(error) => panic!("{error}\n{}", lines.lock().expect("lock").join("\n")),
    };
    assert_eq!(built.warnings, []);
    assert_eq!(built.overlaps, []);
    eprintln!("built: {name}: {} ms, {}", built.step_ms, built.manifest);
    let (sink, _) = listen();
    let again = block_on(builder.rebuild(&job, built.manifest, sink)).expect("rebuild");
    assert!(again.passed(), "{:?}", again.divergence);
    let answer = serve(&recipe, &built, &blobs, dir.path());
    assert!(answer.starts_with("HTTP/1.") && answer.contains(page), "{answer}");
    None
}

/// The committed files of an example.
fn export(source: &Path) -> (Digest, Export) {
    let mut tree = Tree::new();
    let mut files = Vec::new();
    for path in files_below(source, source) {
        let bytes = fs::read(source.join(&path)).expect("file");
        let kind = EntryKind::File { digest: Digest::of(&bytes), size: bytes.len() as u64 };
        tree.insert(&path, Entry { mode: 0o644, kind }).expect("path");
        files.push((path, bytes));
    }
    let copy = tree.clone();
    let export: Export = Arc::new(move |dir: &Path| {
        for (path, bytes) in &files {
            let at = dir.join(path);
            fs::create_dir_all(at.parent().ok_or("no parent")?).map_err(|error| error.to_string())?;
            fs::write(at, bytes).map_err(|error| error.to_string())?;
        }
        Ok(copy.clone())
    });
    (tree.digest(), export)
}

fn files_below(top: &Path, dir: &Path) -> Vec<String> {
    let ignored = fs::read_to_string(top.join(".gitignore")).unwrap_or_default();
    let ignored = |path: &Path| {
        let object = path.extension().is_some_and(|extension| extension == "o");
        object || ignored.lines().any(|line| path.file_name().is_some_and(|name| name == line))
    };
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).expect("directory").flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        if ignored(&path) {
            continue;
        }
        if path.is_dir() {
            files.extend(files_below(top, &path));
        } else {
            files.push(path.strip_prefix(top).expect("below").to_str().expect("text").to_owned());
        }
    }
    files
}

/// Unpacks the image with GNU tar, runs it in a sandbox and asks for its page.
fn serve(recipe: &Recipe, built: &adamant_build::Built, blobs: &FsBlobs, dir: &Path) -> String {
    let artifact = recipe.artifact("web").expect("artifact");
    let root = dir.join("root");
    fs::create_dir(&root).expect("directory");
    for layer in &built.layers {
        let blob = blobs.path(layer.digest.sha256().expect("sha256"));
        let status =
            std::process::Command::new("tar").args(["--no-same-owner", "-xf"]).arg(blob).arg("-C").arg(&root).status();
        assert!(status.expect("tar").success());
    }
    let socket = dir.join("socket");
    let listener = UnixListener::bind(&socket).expect("socket");
    let spec = adamant_sandbox::Spec {
        root,
        mounts: Vec::new(),
        argv: artifact.run.clone(),
        env: vec![("PATH".into(), adamant_build::abi::PATH.into())],
        cwd: "/".into(),
        hostname: "example".into(),
        uid: 1000,
        gid: 1000,
        limits: adamant_sandbox::Limits::default(),
        cpus: None,
        port: artifact.port,
        aslr: true,
        kind: adamant_sandbox::Kind::Instance,
    };
    let sandbox = adamant_sandbox::Sandbox::new(std::env::current_exe().expect("own path"));
    let fds = adamant_sandbox::Fds { listener: Some(listener.into()), ..adamant_sandbox::Fds::default() };
    let child = sandbox.spawn(&spec, fds).expect("spawn");
    let mut answer = String::new();
    for _ in 0..100 {
        if let Some(mut connection) = connect(&socket) {
            connection.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("request");
            connection.read_to_string(&mut answer).expect("answer");
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    child.kill();
    let outcome = child.wait();
    assert!(!answer.is_empty(), "nothing listens: {outcome:?}");
    answer
}

/// The TCP connection that the sandbox hands out, if the program listens by now.
fn connect(socket: &Path) -> Option<std::net::TcpStream> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let stream = UnixStream::connect(socket).ok()?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 256];
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let given = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next().map(std::net::TcpStream::from),
        _ => None,
    })?;
    given.set_nonblocking(false).ok()?;
    Some(given)
}
