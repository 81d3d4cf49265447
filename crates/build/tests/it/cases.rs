//! What is tried. A case returns the reason why it was skipped.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::ExitCode;

use adamant_build::{BuildError, Built, Job, OutputError, StepError, Trace};
use adamant_recipe::Commit;

use crate::setup::{Site, directory, listen, packages, silent};

pub(crate) type Case = fn() -> Option<String>;

pub(crate) const ALL: &[(&str, Case)] = &[
    ("two places and two users build the same bytes", same_bytes),
    ("what a step sees is fixed", fixed_view),
    ("a divergence is explained", divergence),
    ("failures name cause and cure", failures),
    ("a damaged root is made again", damaged_root),
    ("the image runs from its runtime packages", runtime_image),
];

const HELLO: [(&str, &str); 3] = [
    ("Makefile", "out: main.o sub/part.o\n\tgcc -static -g -o $@ $^\n"),
    (
        "main.c",
        "#include <stdio.h>\nint part(void);\nint main(void) { printf(\"%s %s %s %d\\n\", __DATE__, __TIME__, \
         __FILE__, part()); return 0; }\n",
    ),
    ("sub/part.c", "int part(void) { return 42; }\n"),
];

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("runtime").block_on(work)
}

/// A site in a directory of its own; or why there is none.
fn site() -> Result<(tempfile::TempDir, Site), String> {
    let packages = packages()?;
    let dir = directory();
    let site = block_on(Site::new(&dir.path().join("data"), &packages));
    match block_on(site.builder.build(&site.job(&[], "echo x > out"), silent())) {
        Err(BuildError::Step { source, .. }) if matches!(*source, StepError::Sandbox(_)) => Err(source.to_string()),
        result => result.map(|_| (dir, site)).map_err(|error| panic!("{error}")),
    }
}

macro_rules! site {
    () => {
        match site() {
            Ok(site) => site,
            Err(reason) => return Some(reason),
        }
    };
}

fn build(site: &Site, job: &Job) -> Result<Built, BuildError> {
    block_on(site.builder.build(job, silent()))
}

/// Builds the common program below a directory of the caller and writes its digest.
pub(crate) fn digest(packages: &Path, result: &Path) -> ExitCode {
    let data = directory();
    let site = block_on(Site::new(&data.path().join("another/path"), packages));
    match build(&site, &site.job(&HELLO, "make")) {
        Ok(built) => {
            fs::write(result, built.manifest.to_string()).expect("result");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn same_bytes() -> Option<String> {
    let (dir, site) = site!();
    let job = site.job(&HELLO, "make");
    let first = build(&site, &job).expect("first build");
    let other = block_on(Site::new(&dir.path().join("a/longer/path/to/data"), &packages().expect("packages")));
    let second = build(&other, &other.job(&HELLO, "make")).expect("second build");
    assert_eq!(first.manifest, second.manifest, "two data directories");
    assert_eq!(first.tree, second.tree);
    assert_eq!(job.key(), other.job(&HELLO, "make").key());
    let again = block_on(site.builder.rebuild(&job, first.manifest, silent())).expect("rebuild");
    assert!(again.passed(), "{:?}", again.divergence);
    assert_eq!(again.manifest, first.manifest);
    // A commit that the artifact does not ask for changes nothing; one it asks for, the key alone.
    let commit = Commit { id: "9f3c".into(), time: 1_700_000_000 };
    let mut seen = Job { commit: Some(commit), ..job.clone() };
    assert_eq!(seen.key(), job.key());
    seen.artifact.needs_commit = true;
    assert_ne!(seen.key(), job.key());
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let shared = directory();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o777)).expect("permissions");
    let debs = shared.path().join("debs");
    fs::create_dir(&debs).expect("directory");
    for entry in fs::read_dir(packages().expect("packages")).expect("packages").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            fs::copy(entry.path(), debs.join(entry.file_name())).expect("copy");
        }
    }
    let result = shared.path().join("result");
    if let Err(reason) = crate::as_ordinary_user(shared.path(), &[&debs, &result]) {
        // What the host forbids is the sandbox alone.
        assert!(reason.contains("sandbox") || reason.contains("setpriv"), "{reason}");
        return Some(format!("ordinary user: {reason}"));
    }
    assert_eq!(fs::read_to_string(&result).expect("result"), first.manifest.to_string(), "root and ordinary user");
    None
}

fn fixed_view() -> Option<String> {
    let (_dir, site) = site!();
    let files = [("b", "1"), ("a", "2"), ("d/e", "3")];
    let (sink, lines) = listen();
    let command = "pwd; hostname 2>/dev/null || cat /proc/sys/kernel/hostname; id -u; umask; env | sort; \
                   stat -c '%n %Y %u %a' a d d/e /usr/bin/gcc /usr/bin/cc /etc/passwd; readlink /usr/bin/cc /usr/bin/awk; \
                   test -w /usr && echo writable; touch /vendor/x 2>/dev/null && echo writable; touch /tmp/x /home/x; \
                   echo x > out";
    block_on(site.builder.build(&site.job(&files, command), sink)).expect("build");
    let lines = lines.lock().expect("lock").join("\n");
    let expected = "/build\nbuild\n1000\n0022\nCC=gcc\nHOME=/home\nLANG=C.UTF-8\nLC_ALL=C.UTF-8\nLOGNAME=build\n\
                    PATH=/usr/bin:/usr/sbin:/bin:/sbin\nPWD=/build\nPYTHONDONTWRITEBYTECODE=1\nPYTHONHASHSEED=0\nSHELL=/bin/sh\n\
                    SOURCE_DATE_EPOCH=315532800\nTERM=dumb\nTMPDIR=/tmp\nTZ=UTC\nUSER=build\n\
                    a 315532800 1000 644\nd 315532800 1000 755\nd/e 315532800 1000 644\n\
                    /usr/bin/gcc 315532800 1000 777\n/usr/bin/cc 315532800 1000 777\n/etc/passwd 315532800 1000 644\n\
                    gcc\nmawk";
    assert_eq!(lines, expected);
    None
}

fn divergence() -> Option<String> {
    let (_dir, site) = site!();
    let job = site
        .job(&[("a", "same")], "mkdir out; cp a out/a; { echo one; head -c 8 /dev/urandom | od -An -tx1; } > out/b");
    let first = build(&site, &job).expect("build");
    let again = block_on(site.builder.rebuild(&job, first.manifest, silent())).expect("rebuild");
    let found = again.divergence.expect("a divergence");
    assert_eq!(found.path, "app/out/b");
    assert!(found.detail.starts_with("line 2 is `"), "{}", found.detail);
    assert_ne!(again.manifest, first.manifest);
    None
}

fn failures() -> Option<String> {
    let (_dir, site) = site!();
    let fails = |command: &str| build(&site, &site.job(&[], command)).expect_err(command);

    let error = fails("echo working; echo broken >&2; exit 3");
    assert_eq!(error.to_string(), "the build command exited with 3; its last lines:\n  working\n  broken");
    let log = block_on(adamant_store::BlobStore::get(&*site.blobs, error.log().expect("log"))).expect("log");
    assert_eq!(log.bytes(), b"working\nbroken\n");

    let error = fails("bash -c 'exec 3<>/dev/tcp/files.example.org/80'");
    let text = error.to_string();
    assert!(text.starts_with("the build wanted the network: files.example.org; "), "{text}");

    let error = fails("date > out");
    assert!(matches!(&error, BuildError::Trace { finding, .. } if finding.trace == Trace::Date), "{error}");
    assert!(error.to_string().starts_with("output /app/out, line 1 holds today's date, `"), "{error}");

    let error = fails("cat /proc/self/mountinfo > out");
    assert!(matches!(&error, BuildError::Trace { finding, .. } if finding.trace == Trace::DataPath), "{error}");

    let error = fails("true");
    assert!(
        matches!(&error, BuildError::Output { source, .. } if matches!(**source, OutputError::Missing { .. })),
        "{error}"
    );
    let error = fails("ln -s /etc/passwd out");
    assert!(
        matches!(&error, BuildError::Output { source, .. } if matches!(**source, OutputError::Outside(_))),
        "{error}"
    );

    let mut slow = site.job(&[], "sleep 60");
    slow.artifact.timeout_s = 1;
    let error = build(&site, &slow).expect_err("timeout");
    assert!(error.to_string().contains("raise `timeout_s`"), "{error}");

    let mut bare = site.job(&[], "true");
    bare.toolchain.clear();
    let error = build(&site, &bare).expect_err("no shell");
    assert!(error.to_string().contains("add `dash` to `toolchain`"), "{error}");

    let mut missing = site.job(&[], "echo x > out");
    missing.runtime = vec![adamant_build::Deb { digest: adamant_digest::Digest::of(b"?"), ..site.runtime[0].clone() }];
    let error = build(&site, &missing).expect_err("missing package");
    assert!(error.is_ours() && error.to_string().contains("is not in the store"), "{error}");
    let left: Vec<_> = fs::read_dir(site.data.join("work")).expect("work").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["again"], "work directories left behind");
    None
}

fn damaged_root() -> Option<String> {
    let (_dir, site) = site!();
    let job = site.job(&[], "echo ok > out");
    let first = build(&site, &job).expect("build");
    let roots: Vec<_> = fs::read_dir(site.data.join("cache/roots"))
        .expect("roots")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("usr/bin/gcc").exists())
        .collect();
    let victim = roots[0].join("usr/include/stdio.h");
    let meta = fs::metadata(&victim).expect("metadata");
    let mut bytes = fs::read(&victim).expect("read");
    bytes[100] ^= 1;
    fs::write(&victim, &bytes).expect("write");
    let time = fs::FileTimes::new().set_modified(meta.modified().expect("time"));
    fs::File::options().write(true).open(&victim).expect("open").set_times(time).expect("times");
    assert_eq!(fs::metadata(&victim).expect("metadata").mtime(), meta.mtime());
    // A new process reads all of it; so does a scrub.
    let (count, damaged) = block_on(site.builder.roots().verify()).expect("verify");
    assert_eq!((count, damaged.len()), (2, 1), "{damaged:?}");
    assert!(damaged[0].ends_with("usr/include/stdio.h"), "{damaged:?}");
    fs::create_dir_all(site.data.join("cache/roots/.tmp-left/tree")).expect("left");
    fs::create_dir_all(site.data.join("work/build-left")).expect("left");
    let fresh = Site { builder: Site::open(&site.data, site.blobs.clone()), ..site };
    assert!(!fresh.data.join("cache/roots/.tmp-left").exists() && !fresh.data.join("work/build-left").exists());
    assert_eq!(build(&fresh, &job).expect("build").manifest, first.manifest);
    bytes[100] ^= 1;
    assert_eq!(fs::read(&victim).expect("read"), bytes, "the root was made again");
    fs::write(&victim, b"truncated").expect("write");
    let again = Site { builder: Site::open(&fresh.data, fresh.blobs.clone()), ..fresh };
    build(&again, &job).expect("build");
    assert_eq!(fs::read(&victim).expect("read"), bytes, "the root was made again");
    None
}

fn runtime_image() -> Option<String> {
    let (_dir, site) = site!();
    let mut job = site
        .job(&[("main.c", "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n")], "gcc -o out main.c");
    job.runtime.clone_from(&site.runtime);
    job.artifact.files = [("/bin/hello".to_owned(), "out".to_owned())].into();
    job.artifact.run = vec!["/bin/hello".into()];
    let built = build(&site, &job).expect("build");
    assert_eq!(built.layers.len(), 2);
    let manifest = adamant_oci::Manifest::parse(built.manifest_bytes.clone()).expect("manifest");
    assert_eq!(manifest.digest(), built.manifest);
    // Unpacked by GNU tar, it runs in a sandbox.
    let dir = directory();
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("directory");
    for layer in &built.layers {
        let digest = layer.digest.sha256().expect("sha256");
        let status = std::process::Command::new("tar")
            .args(["--no-same-owner", "-xf"])
            .arg(site.blobs.path(digest))
            .arg("-C")
            .arg(&root)
            .status();
        assert!(status.expect("tar").success());
    }
    assert!(root.join("usr/bin/hello").exists() && root.join("bin").is_symlink());
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
    let spec = adamant_sandbox::Spec {
        root,
        mounts: Vec::new(),
        argv: vec!["/bin/hello".into()],
        env: Vec::new(),
        cwd: "/".into(),
        hostname: "x".into(),
        uid: 1000,
        gid: 1000,
        limits: adamant_sandbox::Limits::default(),
        cpus: None,
        port: None,
        aslr: true,
        kind: adamant_sandbox::Kind::Instance,
    };
    let sandbox = adamant_sandbox::Sandbox::new(std::env::current_exe().expect("own path"));
    let fds = adamant_sandbox::Fds { stdout: Some(writer), ..adamant_sandbox::Fds::default() };
    let outcome = sandbox.spawn(&spec, fds).expect("spawn").wait().expect("wait");
    assert!(outcome.success(), "{outcome:?}");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut fs::File::from(reader), &mut said).expect("read");
    assert_eq!(said, "hello\n");
    None
}
