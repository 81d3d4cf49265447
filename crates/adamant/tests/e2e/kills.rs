//! `kill -9` of a registry at any time under load.

use std::time::{Duration, Instant, SystemTime};

use adamant_digest::Digest;

use crate::process::wait_for;
use crate::pushes::{Client, Image, Random, Said, Trouble, assert_sound, files, rounds, serve};
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
