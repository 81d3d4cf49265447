//! What is pushed is told, across restarts of the server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Ask;
use crate::process::run;
use crate::template::exe;
use crate::upstream::push;
use crate::world::{Server, fresh};

/// A receiver on a thread of its own: everything it is told, id and event.
fn receiver() -> (String, mpsc::Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (told, events) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut id, mut length) = (String::new(), 0);
            for line in reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
                match line.split_once(": ") {
                    Some(("webhook-id", value)) => value.clone_into(&mut id),
                    Some(("content-length", value)) => length = value.parse().unwrap(),
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
            reader.get_mut().write_all(answer).unwrap();
            if told.send((id, serde_json::from_slice(&body).unwrap())).is_err() {
                return;
            }
        }
    });
    (url, events)
}

fn listed(server: &Server) -> Value {
    let out = run(Command::new(&server.exe).args(["webhook", "list", "--json", "--data"]).arg(&server.data)).ok();
    serde_json::from_str::<Value>(&out).unwrap()[0].take()
}

#[test]
fn a_push_is_told_and_a_killed_server_goes_on_where_it_was() {
    let dir = fresh("webhooks");
    let data = dir.join("data");
    std::fs::create_dir_all(&data).unwrap();
    let (url, events) = receiver();
    let settings = format!("[[webhook]]\nname = \"ci\"\nurl = \"{url}\"\nsecret-file = \"ci.secret\"\n");
    std::fs::write(data.join("server.toml"), settings).unwrap();
    std::fs::write(data.join("ci.secret"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let next = || events.recv_timeout(Duration::from_secs(30)).unwrap();
    let mut ids = Vec::new();
    for tag in ["1", "2"] {
        let mut server = Server::start(&data, exe(), &["--anonymous-registry"]);
        let digest = push(&server.url, "open/x", tag, tag.as_bytes());
        // The manifest is told, and then its tag.
        let told = [next(), next()];
        let (tags, digests): (Vec<_>, Vec<_>) = told
            .iter()
            .map(|(_, event)| &event["data"]["customData"])
            .map(|more| (more["tag"].clone(), more["digest"].clone()))
            .unzip();
        assert_eq!(tags, [Value::Null, Value::from(tag)]);
        assert_eq!(digests, [digest.to_string(), digest.to_string()]);
        assert_eq!(told[1].1["type"], "dev.cdevents.artifact.published.0.2.0");
        ids.extend(told.map(|(id, _)| id));
        let began = Instant::now();
        let hook = loop {
            let hook = listed(&server);
            if hook["lag"] == 0 {
                break hook;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{hook}");
        };
        assert_eq!((&hook["name"], &hook["delivered"]), (&Value::from("ci"), &Value::from(2)), "{hook}");
        let metrics = Ask::new("GET", "/metrics").send(&server.url).unwrap().text();
        for sample in [
            "adamant_webhook_deliveries_total{webhook=\"ci\",result=\"delivered\"} 2",
            "adamant_webhook_lag_entries{webhook=\"ci\"} 0",
            "adamant_registry_requests_total{method=\"PUT\",status=\"2xx\"} 1",
        ] {
            assert!(metrics.contains(sample), "{sample}: {metrics}");
        }
        server.kill();
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    assert!(events.try_recv().is_err());
}
