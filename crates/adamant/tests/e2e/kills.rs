//! `kill -9` of a registry at any time under load, and every file system call of a push that fails.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use adamant_digest::Digest;

use crate::client::Ask;
use crate::process::{installed, run, skipped, wait_for};
use crate::pushes::{Client, Image, Random, Said, Trouble, assert_sound, files, rounds, serve, serve_with};
use crate::world::fresh;

#[test]
fn a_registry_that_is_killed_at_any_time_loses_nothing() {
    let dir = fresh("registry-kills");
    let data = dir.join("data");
    let mut random = Random::new();
    let mut server = serve(&data);
    let mut said = Said::default();
    let (mut cut, mut resumed, mut repeated) = (0, 0, 0);
    let begin = Instant::now();
    for round in 0..rounds(50) {
        let when = format!("round {round}");
        let clients: Vec<_> = (0..4)
            .map(|number| {
                let (url, mut random) = (server.url.clone(), random.fork());
                std::thread::spawn(move || {
                    let mut client = Client::new(&url);
                    for n in 0.. {
                        let longest = if n % 3 == 2 { 3 << 20 } else { 100_000 };
                        let image = Image::new(&format!("load/c{number}-{}", n % 2), &mut random, longest);
                        match client.push(&image) {
                            Ok(()) => {}
                            Err(Trouble::Gone(_)) => return (client, image),
                            Err(Trouble::Refused(status, text)) => panic!("{status}: {text}"),
                        }
                    }
                    unreachable!("the server dies before")
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(10 + random.below(400)));
        server.kill();
        let clients: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        server = serve(&data);
        let mut new = Said::default();
        for (client, _) in &clients {
            new.add(client.said.clone());
        }
        new.assert_there_alone(&server.url, &when);
        said.add(new);
        for (client, image) in clients {
            let mut again = Client::new(&server.url);
            again.open = client.open;
            cut += i32::from(again.open.is_some());
            resumed += i32::from(again.resume(&when).unwrap());
            again.push(&image).unwrap();
            repeated += 1;
            said.add(again.said);
        }
        if round % 8 == 0 {
            said.assert_there(&server.url, &when);
            assert_sound(&data, &when);
            eprintln!("{when}: {:.0} s", begin.elapsed().as_secs_f64());
        }
    }
    said.assert_there(&server.url, "at the end");
    // Uploads whose answer was lost are known to nobody and expire.
    server.stop();
    let old = SystemTime::now() - Duration::from_hours(25);
    for path in files(&data.join("work/uploads")) {
        std::fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    server = serve(&data);
    wait_for("the sweep of old uploads", || files(&data.join("work/uploads")).is_empty().then_some(()));
    assert_eq!(files(&data.join("blobs/tmp")), Vec::<std::path::PathBuf>::new());
    let empty = Digest::of(b"{}");
    for path in files(&data.join("blobs/sha256")) {
        let digest = Digest::from_hex(path.file_name().unwrap().to_str().unwrap()).unwrap();
        let known = said.blobs.contains_key(&digest) || said.manifests.keys().any(|(_, d)| *d == digest);
        assert!(known || digest == empty, "nothing that was acknowledged explains blob {digest}");
    }
    eprintln!(
        "{} kills in {:.0} s: {} blobs, {} manifests, {} tags, {cut} chunked uploads cut off, {resumed} resumed, {repeated} pushes repeated",
        rounds(50),
        begin.elapsed().as_secs_f64(),
        said.blobs.len(),
        said.manifests.len(),
        said.tags.len(),
    );
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}

/// The switch that `faults.c` reads.
struct Switch(std::fs::File);

const ALL: i32 = 511;
const CHANGES: i32 = 127;

impl Switch {
    fn arm(&self, mask: i32, nth: i32, errno: rustix::io::Errno, sticky: bool) {
        self.0.write_all_at(&[0; 256], 0).unwrap();
        let numbers = [0, nth, errno.raw_os_error(), 0, 0, i32::from(sticky)];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        self.0.write_all_at(&bytes, 0).unwrap();
        self.0.write_all_at(&mask.to_ne_bytes(), 0).unwrap();
    }

    /// Ends the fault; says which call failed first, if one did.
    fn disarm(&self) -> Option<String> {
        self.0.write_all_at(&0_i32.to_ne_bytes(), 0).unwrap();
        let mut what = [0; 192];
        self.0.read_exact_at(&mut what, 64).unwrap();
        let text = String::from_utf8_lossy(&what).trim_end_matches('\0').to_owned();
        (!text.is_empty()).then_some(text)
    }
}

/// The call and the kind of file: names of content and of uploads are all one.
fn kind(what: &str) -> String {
    let (call, path) = what.split_once(' ').unwrap();
    let parts = path.split('/').map(|part| {
        let hex = part.len() >= 2 && part.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        if hex {
            "*"
        } else if part.starts_with("in-") {
            "in-*"
        } else {
            part
        }
    });
    format!("{call} {}", parts.collect::<Vec<_>>().join("/"))
}

fn library(dir: &Path) -> Result<std::path::PathBuf, &'static str> {
    if !installed("cc") {
        return Err("there is no C compiler");
    }
    let (source, library) = (dir.join("faults.c"), dir.join("faults.so"));
    std::fs::write(&source, include_str!("faults/faults.c")).unwrap();
    run(Command::new("cc").args(["-O1", "-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(&source).arg("-ldl")).ok();
    Ok(library)
}

#[test]
fn a_push_survives_the_failure_of_each_file_system_call() {
    let test = "a_push_survives_the_failure_of_each_file_system_call";
    let dir = fresh("registry-faults");
    let (data, switch) = (dir.join("data"), dir.join("switch"));
    let library = match library(&dir) {
        Ok(library) => library,
        Err(reason) => return skipped(test, reason),
    };
    std::fs::write(&switch, [0; 4096]).unwrap();
    let start = || {
        serve_with(&data, |command| {
            command.env("LD_PRELOAD", &library).env("ADAMANT_FAULTS", &switch).env("ADAMANT_FAULTS_DIR", &data);
        })
    };
    let mut server = start();
    let switch = Switch(std::fs::File::options().read(true).write(true).open(&switch).unwrap());
    let mut random = Random::new();
    let mut said = Said::default();
    let mut hit = std::collections::BTreeMap::<String, (u32, u32)>::new();
    let (io, full) = (rustix::io::Errno::IO, rustix::io::Errno::NOSPC);
    // From the n-th call on, the disk is gone until it comes back; or one call alone fails.
    for (mask, errno, sticky, step) in
        [(ALL, io, false, 1), (CHANGES, full, false, 1), (ALL, io, true, 9), (CHANGES, full, true, 9)]
    {
        let mut n = 1;
        loop {
            let image = Image::every_way(&format!("fault/{}-{sticky}", errno.raw_os_error()), &mut random);
            let mut client = Client::new(&server.url);
            switch.arm(mask, n, errno, sticky);
            let outcome = client.push(&image);
            let failed = switch.disarm();
            let when =
                format!("{errno} at call {n}{}: {failed:?}: {outcome:?}", if sticky { " and after" } else { "" });
            assert!(!server.process.ended(), "{when}: the server ended: {}", server.process.err.text());
            let Some(failed) = failed else {
                outcome.unwrap_or_else(|trouble| panic!("{when}: nothing failed: {trouble:?}"));
                break;
            };
            let refused = match outcome {
                Ok(()) => false,
                // Whatever happens on its disk, the server answers.
                Err(Trouble::Gone(error)) => panic!("{when}: no answer: {error}"),
                Err(Trouble::Refused(status, text)) => {
                    assert!((500..=507).contains(&status) && text.contains("\"errors\""), "{when}: {text}");
                    true
                }
            };
            let seen = hit.entry(kind(&failed)).or_default();
            seen.0 += 1;
            seen.1 += u32::from(refused);
            // The fault is gone: the same client completes the same push.
            client.cancel().unwrap_or_else(|trouble| panic!("{when}: then {trouble:?}"));
            client.push(&image).unwrap_or_else(|trouble| panic!("{when}: again: {trouble:?}"));
            client.said.assert_there_alone(&server.url, &when);
            said.add(client.said);
            if n % 40 == 0 {
                server.kill();
                server = start();
                said.assert_there(&server.url, &when);
                assert_sound(&data, &when);
            }
            n += step;
            assert!(n < 2000, "a push has no end of calls");
        }
        server.kill();
        server = start();
        said.assert_there(&server.url, "after all of them");
        assert_sound(&data, "after all of them");
        eprintln!("{errno}{}: {n} calls", if sticky { " from each on" } else { " at each" });
    }
    for (call, (times, refused)) in &hit {
        eprintln!("{call}: {times} times, {refused} of them refused");
    }
    for call in ["open", "write", "sync", "mkdir", "unlink", "read"] {
        assert!(
            hit.keys().any(|kind| kind.split(' ').next().is_some_and(|name| name.contains(call))),
            "{call}: {hit:?}"
        );
    }
    for place in ["/blobs/tmp/in-*", "/blobs/sha256/*", "/blobs/sha512/*", "/uploads/*", "-wal"] {
        assert!(hit.keys().any(|kind| kind.contains(place)), "{place}: {hit:?}");
    }
    // Nothing half is left.
    server.stop();
    server = start();
    assert_eq!(files(&data.join("blobs/tmp")), Vec::<std::path::PathBuf>::new());
    let ask = Ask::new("GET", "/v2/").send(&server.url).unwrap();
    assert_eq!(ask.status, 200);
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}
