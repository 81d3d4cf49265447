//! Every file system call of a push, of a collection and of the packer that fails, with EIO and with ENOSPC.
//!
//! What calls there are is seen first; then, in each run, every kind of call at every kind of place
//! fails at one occurrence, which the seed chooses. `ADAMANT_TEST_ROUNDS` is how many occurrences.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use adamant_digest::{Digest, Sha512};
use rustix::io::Errno;

use crate::client::Ask;
use crate::process::{Ended, installed, run, skipped, wait_for};
use crate::pushes::{Client, Content, Image, Random, Said, Trouble, assert_sound, files, rounds, serve_with};
use crate::template::exe;
use crate::world::{Server, fresh};

/// Calls that `faults.c` counts: all, and those that change something.
const ALL: i32 = 0xfff;
const CHANGES: i32 = 0x27f;

/// Calls that a run is kept to at most, of any kind.
const MOST: usize = 5000;

/// A server below which file system calls fail when they are told to.
struct Faulty {
    data: PathBuf,
    launcher: PathBuf,
    path: PathBuf,
    switch: File,
    /// The only thread whose calls count; empty for all.
    thread: &'static str,
    log: &'static str,
    server: Option<Server>,
    /// How often each kind of call failed.
    hit: BTreeMap<String, u32>,
}

impl Faulty {
    fn new(dir: &Path, thread: &'static str, log: &'static str) -> Result<Self, &'static str> {
        if !installed("cc") {
            return Err("there is no C compiler");
        }
        let (source, launcher, path) = (dir.join("faults.c"), dir.join("faults"), dir.join("switch"));
        std::fs::write(&source, include_str!("faults/faults.c")).unwrap();
        run(Command::new("cc").args(["-O1", "-w", "-o"]).arg(&launcher).arg(&source)).ok();
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let tried = run(Command::new(&launcher).arg(&path).arg(dir).arg("true"));
        if tried.code == 75 {
            return Err("this host lets no program answer for the kernel (seccomp, user notification)");
        }
        let switch = File::options().read(true).write(true).open(&path).unwrap();
        let data = dir.join("data");
        let mut faulty = Self { data, launcher, path, switch, thread, log, server: None, hit: BTreeMap::new() };
        faulty.start();
        Ok(faulty)
    }

    fn start(&mut self) {
        self.server = Some(serve_with(&self.data, |command| {
            let mut faulty = Command::new(&self.launcher);
            faulty.arg(&self.path).arg(&self.data).arg(command.get_program()).args(command.get_args());
            faulty.env("ADAMANT_LOG", self.log);
            *command = faulty;
        }));
    }

    fn server(&mut self) -> &mut Server {
        self.server.as_mut().unwrap()
    }

    fn url(&self) -> &str {
        &self.server.as_ref().unwrap().url
    }

    /// From now on the `nth` of a kind of call fails (of all, if it is empty), or everything from it on.
    fn arm(&self, mask: i32, only: &str, nth: usize, errno: Errno, sticky: bool) {
        let mut name = [0; 16];
        name[..self.thread.len()].copy_from_slice(self.thread.as_bytes());
        self.switch.write_all_at(&[0; 256], 0).unwrap();
        self.switch.write_all_at(&name, 256).unwrap();
        let mut call = [0; 192];
        call[..only.len()].copy_from_slice(only.as_bytes());
        self.switch.write_all_at(&call, 512).unwrap();
        let numbers = [0, i32::try_from(nth).unwrap(), errno.raw_os_error(), 0, 0, i32::from(sticky)];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        self.switch.write_all_at(&bytes, 0).unwrap();
        self.switch.write_all_at(&mask.to_ne_bytes(), 0).unwrap();
    }

    /// Ends the fault; says which call failed first, if one did.
    fn disarm(&mut self) -> Option<String> {
        self.switch.write_all_at(&0_i32.to_ne_bytes(), 0).unwrap();
        let failed = self.text(64);
        if !failed.is_empty() {
            *self.hit.entry(failed.clone()).or_default() += 1;
        }
        (!failed.is_empty()).then_some(failed)
    }

    fn text(&self, at: u64) -> String {
        let mut text = [0; 192];
        self.switch.read_exact_at(&mut text, at).unwrap();
        String::from_utf8_lossy(&text).split('\0').next().unwrap().to_owned()
    }

    /// The kinds of calls that `work` makes, and how often.
    fn look(&mut self, mask: i32, work: impl FnOnce(&mut Self)) -> BTreeMap<String, usize> {
        self.arm(mask, "", usize::try_from(i32::MAX).unwrap(), Errno::IO, false);
        work(self);
        self.disarm();
        let mut count = [0; 4];
        self.switch.read_exact_at(&mut count, 12).unwrap();
        let count = usize::try_from(i32::from_ne_bytes(count)).unwrap();
        assert!((1..MOST).contains(&count), "{count} calls");
        let mut calls = BTreeMap::new();
        for nth in 0..count as u64 {
            *calls.entry(self.text(4096 + nth * 192)).or_default() += 1;
        }
        calls
    }

    fn checkpoint(&self) -> Vec<u8> {
        std::fs::read(self.data.join("log/checkpoint")).unwrap_or_default()
    }

    /// Waits until the log's files were written after `before`, which a push does not wait for, or a call
    /// failed; not for long, since a fault may keep them from it.
    fn await_files(&self, before: &[u8]) {
        let begin = Instant::now();
        while self.checkpoint() == before && self.text(64).is_empty() && begin.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills the server and starts it again.
    fn restart(&mut self) {
        self.server().kill();
        self.start();
    }

    #[track_caller]
    fn assert_alive(&mut self, when: &str) {
        let server = self.server();
        assert!(!server.process.ended(), "{when}: the server ended: {}", server.process.err.text());
    }

    /// Says what failed, and that each of `kinds` and something at each of `places` did.
    #[track_caller]
    fn assert_hit(&self, kinds: &[&str], places: &[&str]) {
        for (call, times) in &self.hit {
            eprintln!("{call}: {times} times");
        }
        let call = |kind: &&String| kind.split(' ').next().unwrap().to_owned();
        for kind in kinds {
            assert!(self.hit.keys().any(|hit| call(&hit).contains(kind)), "{kind}: {:?}", self.hit);
        }
        for place in places {
            assert!(self.hit.keys().any(|hit| hit.contains(place)), "{place}: {:?}", self.hit);
        }
    }
}

/// One occurrence of each kind of call, or as many as the environment says.
fn chosen<'a>(calls: &'a BTreeMap<String, usize>, random: &mut Random) -> BTreeSet<(&'a str, usize)> {
    let mut chosen = BTreeSet::new();
    for (call, count) in calls {
        for _ in 0..rounds(1).min(*count as u64) {
            chosen.insert((call.as_str(), 1 + usize::try_from(random.below(*count as u64)).unwrap()));
        }
    }
    chosen
}

/// Which faults there are: EIO of any call and ENOSPC of one that changes something.
const FAULTS: [(i32, Errno); 2] = [(ALL, Errno::IO), (CHANGES, Errno::NOSPC)];

#[test]
fn a_push_survives_the_failure_of_each_file_system_call() {
    let dir = fresh("registry-faults");
    let mut faulty = match Faulty::new(&dir, "", "info") {
        Ok(faulty) => faulty,
        Err(reason) => return skipped("a_push_survives_the_failure_of_each_file_system_call", reason),
    };
    let begin = Instant::now();
    let mut random = Random::new();
    let mut said = Said::default();
    // One call alone fails; or the disk is gone from it on until it comes back.
    for ((mask, errno), sticky) in FAULTS.into_iter().flat_map(|fault| [(fault, false), (fault, true)]) {
        let repository = format!("fault/{}-{sticky}", errno.raw_os_error());
        for _ in 0..2 {
            // What is made once for a repository and a data directory is there.
            let image = Image::every_way(&repository, &mut random);
            Client::new(faulty.url()).push(&image).unwrap();
        }
        let image = Image::every_way(&repository, &mut random);
        let calls = faulty.look(mask, |faulty| {
            let before = faulty.checkpoint();
            Client::new(faulty.url()).push(&image).unwrap();
            faulty.await_files(&before);
        });
        let mut chosen = chosen(&calls, &mut random);
        if sticky {
            // The database has more to take back then than anything else.
            let mut place = 0;
            chosen.retain(|(call, _)| {
                place += 1;
                place % 8 == 0 || call.contains("-wal")
            });
        }
        let mut refused = 0;
        for (round, (call, nth)) in chosen.iter().enumerate() {
            let image = Image::every_way(&repository, &mut random);
            let mut client = Client::new(faulty.url());
            let before = faulty.checkpoint();
            faulty.arm(mask, call, *nth, errno, sticky);
            let outcome = client.push(&image);
            if call.contains(" /log") {
                faulty.await_files(&before);
            }
            let failed = faulty.disarm();
            let after = if sticky { " and after" } else { "" };
            let when = format!("{errno} at `{call}` {nth}{after}: {failed:?}: {outcome:?}");
            faulty.assert_alive(&when);
            match outcome {
                Ok(()) => {}
                // Whatever happens on its disk, the server answers.
                Err(Trouble::Gone(error)) => panic!("{when}: no answer: {error}"),
                Err(Trouble::Refused(status, text)) => {
                    assert!(failed.is_some(), "{when}: nothing failed");
                    assert!((500..=507).contains(&status) && text.contains("\"errors\""), "{when}: {text}");
                    refused += 1;
                }
            }
            // The fault is gone: the same client completes the same push.
            client.cancel().unwrap_or_else(|trouble| panic!("{when}: then {trouble:?}"));
            client.push(&image).unwrap_or_else(|trouble| panic!("{when}: again: {trouble:?}"));
            client.said.assert_there_alone(faulty.url(), &when);
            said.add(client.said);
            if round % 40 == 39 {
                faulty.restart();
                said.assert_there_alone(faulty.url(), &when);
                assert_sound(&faulty.data, &when);
            }
        }
        let total: usize = calls.values().sum();
        let which = if sticky { "from each on" } else { "at each" };
        eprintln!(
            "{errno} {which}: {} of {total} calls, {refused} pushes refused, {:.0} s",
            chosen.len(),
            begin.elapsed().as_secs_f64()
        );
    }
    faulty.restart();
    said.assert_there(faulty.url(), "after all of them");
    assert_sound(&faulty.data, "after all of them");
    faulty.assert_hit(
        &[
            "open",
            "write",
            "sync",
            "rename",
            "mkdir",
            "unlink",
            "read",
            "stat",
            "fchmod",
            "utimensat",
            "flock",
            "fcntl",
        ],
        &["/blobs/tmp/in-*", "/blobs/sha256/*", "/blobs/sha512/*", "/uploads/*", "-wal", "/log/tile"],
    );
    // Nothing half is left.
    faulty.server().stop();
    faulty.start();
    assert_eq!(files(&faulty.data.join("blobs/tmp")), Vec::<PathBuf>::new());
    assert_eq!(Ask::new("GET", "/v2/").send(faulty.url()).unwrap().status, 200);
    drop(faulty);
    std::fs::remove_dir_all(dir).unwrap();
}

fn push_blob(url: &str, second: bool, bytes: &[u8]) {
    let digest = if second { Sha512::of(bytes).to_string() } else { Digest::of(bytes).to_string() };
    let path = format!("/v2/some/where/blobs/uploads/?digest={digest}");
    let answer = Ask::new("POST", &path).body("application/octet-stream", bytes).send(url).unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[test]
fn a_collection_survives_the_failure_of_each_file_system_call() {
    let dir = fresh("collection-faults");
    let mut faulty = match Faulty::new(&dir, "", "info") {
        Ok(faulty) => faulty,
        Err(reason) => return skipped("a_collection_survives_the_failure_of_each_file_system_call", reason),
    };
    let mut random = Random::new();
    let mut client = Client::new(faulty.url());
    client.push(&Image::every_way("kept/image", &mut random)).unwrap();
    let said = client.said;
    let data = faulty.data.clone();
    let gc = || -> Ended { run(Command::new(exe()).args(["gc", "--json", "--data"]).arg(&data)) };
    let mut stray = 0;
    // Two blobs that nobody names, one of them with a second name, and long ago.
    let mut strays = |url: &str| -> Vec<PathBuf> {
        [false, true]
            .map(|second| {
                stray += 1;
                let bytes = format!("nobody names stray {stray}").into_bytes();
                push_blob(url, second, &bytes);
                let hex = Digest::of(&bytes).hex();
                let path = data.join("blobs/sha256").join(&hex[..2]).join(&hex);
                let file = File::open(&path).unwrap();
                file.set_modified(SystemTime::now() - Duration::from_hours(30 * 24)).unwrap();
                path
            })
            .to_vec()
    };
    let seconds = || files(&data.join("blobs/sha512")).len();
    let kept = seconds();
    for (mask, errno) in FAULTS {
        strays(faulty.url());
        let calls = faulty.look(mask, |_| drop(gc().ok()));
        let chosen = chosen(&calls, &mut random);
        let mut refused = 0;
        for (call, nth) in &chosen {
            let strays = strays(faulty.url());
            faulty.arm(mask, call, *nth, errno, false);
            let outcome = gc();
            let failed = faulty.disarm();
            let when = format!("{errno} at `{call}` {nth}: {failed:?}: {} {}", outcome.code, outcome.err);
            faulty.assert_alive(&when);
            assert!(outcome.code == 0 || failed.is_some(), "{when}: nothing failed");
            assert!(outcome.code == 0 || outcome.err.contains("error"), "{when}: it does not say why");
            refused += u32::from(outcome.code != 0);
            said.assert_there_alone(faulty.url(), &when);
            // The fault is gone: the next collection takes what that one left.
            gc().ok();
            for path in strays {
                assert!(!path.exists(), "{when}: {} stays", path.display());
            }
        }
        let total: usize = calls.values().sum();
        eprintln!("{errno}: {} of {total} calls, {refused} collections ended by it", chosen.len());
    }
    faulty.restart();
    said.assert_there(faulty.url(), "after all of them");
    assert_sound(&faulty.data, "after all of them");
    assert_eq!(seconds(), kept, "second names of what is gone");
    faulty.assert_hit(&["unlink", "sync", "getdents"], &["/blobs/sha256/*", "/blobs/sha512"]);
    drop(faulty);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn packing_survives_the_failure_of_each_file_system_call() {
    let dir = fresh("packing-faults");
    let mut faulty = match Faulty::new(&dir, "pack", "info,adamant_store=debug") {
        Ok(faulty) => faulty,
        Err(reason) => return skipped("packing_survives_the_failure_of_each_file_system_call", reason),
    };
    let mut random = Random::new();
    let base = Content { seed: random.below(1 << 31), length: (1 << 20) + 70_000 }.bytes();
    let mut pushed = Vec::new();
    // Like the first one but for some bytes; until the packer has looked at it.
    let mut push = |faulty: &mut Faulty| -> (Digest, String) {
        let mut bytes = base.clone();
        let change = Content { seed: random.below(1 << 31), length: 2000 }.bytes();
        bytes[500_000..502_000].copy_from_slice(&change);
        push_blob(faulty.url(), false, &bytes);
        let digest = Digest::of(&bytes);
        let text = digest.to_string();
        let looked = |line: &str| line.contains("looked at a blob") || line.contains("cannot be packed");
        let line = faulty.server().process.err.wait(|line| looked(line) && line.contains(&text));
        pushed.push((digest, change));
        (digest, line.expect("the packer looks at it"))
    };
    push(&mut faulty);
    push(&mut faulty);
    for (mask, errno) in FAULTS {
        let calls = faulty.look(mask, |faulty| drop(push(faulty)));
        let mut left = 0;
        for (call, nth) in &chosen(&calls, &mut Random::new()) {
            faulty.arm(mask, call, *nth, errno, false);
            let (digest, line) = push(&mut faulty);
            let failed = faulty.disarm();
            let when = format!("{errno} at `{call}` {nth}: {failed:?}: {line}");
            faulty.assert_alive(&when);
            assert!(failed.is_some() || line.contains("looked"), "{when}: nothing failed");
            left += u32::from(!line.contains("looked"));
            let answer = Ask::new("GET", &format!("/v2/any/blobs/{digest}")).send(faulty.url()).unwrap();
            assert!(answer.status == 200 && Digest::of(&answer.body) == digest, "{when}: {}", answer.status);
        }
        let total: usize = calls.values().sum();
        eprintln!("{errno}: {} kinds of {total} calls, {left} blobs left as they were", calls.len());
    }
    // The next start packs what was left, and sweeps what a failure left behind.
    faulty.restart();
    let data = faulty.data.clone();
    let lies = |form: &str, digest: &Digest| data.join("blobs").join(form).join(&digest.hex()[..2]).join(digest.hex());
    for (digest, _) in &pushed[1..] {
        wait_for("the packing of what was left", || {
            (lies("patched", digest).exists() && !lies("sha256", digest).exists()).then_some(())
        });
    }
    for (digest, change) in &pushed {
        let answer = Ask::new("GET", &format!("/v2/any/blobs/{digest}")).send(faulty.url()).unwrap();
        assert!(answer.status == 200 && Digest::of(&answer.body) == *digest, "{digest}");
        assert!(answer.body[500_000..502_000] == change[..], "{digest}");
    }
    assert_sound(&data, "after all of them");
    let size = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    let stored: u64 = files(&data.join("blobs")).iter().map(size).sum();
    let expected = (base.len() + pushed.len() * (150 << 10)) as u64;
    assert!(stored < expected, "{stored} bytes for {} blobs, at most {expected} were expected", pushed.len());
    assert_eq!(files(&data.join("blobs/tmp")), Vec::<PathBuf>::new());
    faulty.assert_hit(&["open", "write", "sync", "rename", "unlink", "read"], &["/blobs/patched/*", "/blobs/pieces"]);
    drop(faulty);
    std::fs::remove_dir_all(dir).unwrap();
}
