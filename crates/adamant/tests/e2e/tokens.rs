//! Named tokens with scopes, the token flow of registry clients, limits, and what is written down.

use std::process::Command;

use adamant_digest::Digest;
use serde_json::Value;

use crate::client::{Answer, Ask};
use crate::process::{Ended, installed, run, skipped};
use crate::template::exe;
use crate::world::{Server, fresh};

fn started(test: &str, settings: &str) -> Server {
    let data = fresh(test).join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("server.toml"), settings).unwrap();
    Server::start(&data, exe(), &[])
}

fn adamant(server: &Server, arguments: &[&str]) -> Ended {
    run(Command::new(exe()).args(arguments).arg("--data").arg(&server.data).env("ADAMANT_LOG", "error"))
}

fn create(server: &Server, name: &str, scope: &str) -> String {
    adamant(server, &["token", "create", name, "--scope", scope]).ok().trim().to_owned()
}

fn basic(secret: &str) -> String {
    use std::io::Write as _;
    let mut child = Command::new("base64")
        .args(["-w", "0"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    write!(child.stdin.take().unwrap(), "me:{secret}").unwrap();
    format!("Basic {}", String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
}

fn upload(server: &Server, authorization: &str, repository: &str) -> Answer {
    let path = format!("/v2/{repository}/blobs/uploads/?digest={}", Digest::of(b"{}"));
    let ask = Ask::new("POST", &path).header("Authorization", authorization);
    ask.body("application/octet-stream", b"{}").send(&server.url).unwrap()
}

fn token_of(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let value: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(value["token"], value["access_token"]);
    assert!(value["expires_in"].as_u64().unwrap() >= 60);
    let text = |key: &str| value[key].as_str().unwrap().to_owned();
    (format!("Bearer {}", text("token")), text("scope"))
}

#[test]
fn a_named_token_does_what_its_scopes_say_until_it_is_revoked() {
    let mut server = started("a_named_token_does_what_its_scopes_say_until_it_is_revoked", "");
    let secret = create(&server, "ci", "team/*:pull,push");
    assert!(secret.starts_with("adamant_") && secret.len() > 40, "{secret}");
    let log = std::fs::read(server.data.join("adamant.db")).unwrap();
    assert!(!log.windows(secret.len()).any(|part| part == secret.as_bytes()), "the secret is on disk");
    let again = adamant(&server, &["token", "create", "ci", "--scope", "*:pull"]).fails(1);
    assert!(again.contains("a name is given once"), "{again}");
    adamant(&server, &["token", "create", "bad", "--scope", "team/*:delete"]).fails(2);

    // It survives a restart, and is for the registry alone.
    server.stop();
    let mut server = Server::start(&server.data.clone(), exe(), &[]);
    for authorization in [basic(&secret), format!("Bearer {secret}")] {
        assert_eq!(upload(&server, &authorization, "team/a").status, 201);
        let refused = upload(&server, &authorization, "other/a");
        assert_eq!(refused.status, 403);
        assert!(refused.text().contains("token:ci may not push to other/a"), "{}", refused.text());
    }
    assert_eq!(Ask::new("GET", "/api/v1/tokens").token(&secret).send(&server.url).unwrap().status, 401);

    // What was issued for it ends with it.
    let path = "/v2/token?scope=repository:team/a:pull,push";
    let issued = Ask::new("GET", path).header("Authorization", basic(&secret)).send(&server.url).unwrap();
    let (bearer, scope) = token_of(&issued);
    assert_eq!(scope, "repository:team/a:pull,push");
    assert_eq!(upload(&server, &bearer, "team/a").status, 201);
    let listed = adamant(&server, &["token", "list"]).ok();
    assert!(listed.contains("ci") && listed.contains("team/*:pull,push"), "{listed}");
    adamant(&server, &["token", "revoke", "ci"]).ok();
    assert_eq!(upload(&server, &bearer, "team/a").status, 401);
    assert_eq!(upload(&server, &basic(&secret), "team/a").status, 401);
    assert!(adamant(&server, &["token", "list"]).ok().contains("revoked by"));
    server.stop();
    assert!(adamant(&server, &["fsck"]).ok().contains("nothing is wrong"));
    let server = Server::start(&server.data.clone(), exe(), &[]);
    assert_eq!(upload(&server, &basic(&secret), "team/a").status, 401);
    // The name in the record stays that of one secret.
    adamant(&server, &["token", "create", "ci", "--scope", "*:pull"]).fails(1);
}

#[test]
fn clients_get_a_token_for_what_they_ask() {
    let server = started("clients_get_a_token_for_what_they_ask", "[registry]\nanonymous-pull = [\"open/*\"]\n");
    let secret = create(&server, "ci", "team/*:pull,push");
    let host = server.url.trim_start_matches("http://").to_owned();
    let send = |ask: Ask<'_>| ask.send(&server.url).unwrap();
    let challenged = send(Ask::new("GET", "/v2/team/a/manifests/x"));
    assert_eq!(challenged.status, 401);
    let expected =
        format!("Bearer realm=\"http://{host}/v2/token\",service=\"{host}\",scope=\"repository:team/a:pull\"");
    assert_eq!(challenged.header("www-authenticate"), expected);
    assert_eq!(send(Ask::new("GET", "/v2/")).status, 401);
    // As docker login asks: no scope at all.
    let login = send(Ask::new("GET", "/v2/token?account=me&client_id=docker").header("Authorization", basic(&secret)));
    let (bearer, scope) = token_of(&login);
    assert_eq!(scope, "");
    assert_eq!(send(Ask::new("GET", "/v2/").header("Authorization", &*bearer)).status, 200);
    let more = upload(&server, &bearer, "team/a");
    assert_eq!(more.status, 401);
    assert!(more.header("www-authenticate").ends_with("error=\"insufficient_scope\""), "{more:?}");
    // Several at once, of which it gets what it may; and a form.
    let several = "/v2/token?scope=repository:team/a:pull,push&scope=repository:other:pull";
    let (_, scope) = token_of(&send(Ask::new("GET", several).header("Authorization", basic(&secret))));
    assert_eq!(scope, "repository:team/a:pull,push");
    let form = format!("grant_type=password&username=me&password={secret}&scope=repository%3Ateam%2Fa%3Apush");
    let (bearer, scope) =
        token_of(&send(Ask::new("POST", "/v2/token").body("application/x-www-form-urlencoded", form.as_bytes())));
    assert_eq!(scope, "repository:team/a:push");
    assert_eq!(upload(&server, &bearer, "team/a").status, 201);
    let bad = b"grant_type=password&password=guess";
    assert_eq!(send(Ask::new("POST", "/v2/token").body("application/x-www-form-urlencoded", bad)).status, 401);
    // A token for one purpose buys no other.
    assert_eq!(send(Ask::new("GET", "/v2/token").header("Authorization", &*bearer)).status, 401);
    // Nobody in particular.
    let open = "/v2/token?scope=repository:open/a:pull,push&scope=repository:team/a:pull";
    let (nobody, scope) = token_of(&send(Ask::new("GET", open)));
    assert_eq!(scope, "repository:open/a:pull");
    let missing = send(Ask::new("GET", "/v2/open/a/manifests/x").header("Authorization", &*nobody));
    assert_eq!(missing.status, 404, "{}", missing.text());
    assert_eq!(upload(&server, &nobody, "open/a").status, 401);
    assert_eq!(send(Ask::new("GET", "/v2/open/a/manifests/x")).status, 404);
    let closed = started("clients_get_no_anonymous_token", "");
    assert_eq!(Ask::new("GET", open).send(&closed.url).unwrap().status, 401);
}

#[test]
fn writes_are_written_down_with_the_id_of_the_request() {
    let server = started("writes_are_written_down_with_the_id_of_the_request", "");
    let secret = create(&server, "ci", "team/*:pull,push");
    let path = format!("/v2/team/a/blobs/uploads/?digest={}", Digest::of(b"{}"));
    let ask = |id: &str, path: &str| {
        let ask = Ask::new("POST", path).token(&secret).header("X-Request-Id", id);
        ask.body("application/octet-stream", b"{}").send(&server.url).unwrap()
    };
    assert_eq!(ask("build-7.1", &path).header("x-request-id"), "build-7.1");
    assert_eq!(ask("build-8", &path.replace("team", "other")).status, 403);
    let made = ask("not safe", &path);
    assert!(made.header("x-request-id").len() >= 16 && !made.header("x-request-id").contains(' '), "{made:?}");
    let log = server.process.err.text();
    let line = |id: &str| -> Value {
        let found = log.lines().find(|line| line.contains("registry write") && line.contains(id));
        serde_json::from_str::<Value>(found.unwrap_or_else(|| panic!("{id} is not in\n{log}"))).unwrap()["fields"]
            .clone()
    };
    let written = line("build-7.1");
    assert_eq!(
        (
            written["actor"].as_str(),
            written["repository"].as_str(),
            written["status"].as_u64(),
            written["bytes"].as_u64()
        ),
        (Some("token:ci"), Some("team/a"), Some(201), Some(2))
    );
    assert_eq!(written["digest"].as_str(), Some(Digest::of(b"{}").to_string().as_str()));
    let refused = line("build-8");
    assert_eq!((refused["status"].as_u64(), refused["error"].as_str()), (Some(403), Some("DENIED")));
}

#[test]
fn limits_of_the_operator_hold() {
    let settings = "[registry]\nrequests-per-second = 1\nburst = 3\n\n\
                    [[registry.quota]]\nrepositories = \"small/*\"\nmb = 1\n";
    let server = started("limits_of_the_operator_hold", settings);
    let one = create(&server, "one", "*:pull,push");
    let two = create(&server, "two", "*:pull,push");
    let large = vec![7_u8; (1 << 20) + 1];
    let path = format!("/v2/small/a/blobs/uploads/?digest={}", Digest::of(&large));
    let over = Ask::new("POST", &path).token(&two).body("application/octet-stream", &large).send(&server.url).unwrap();
    assert_eq!(over.status, 403, "{}", over.text());
    assert!(over.text().contains("quota `small/*`"), "{}", over.text());
    let base = |secret: &str| Ask::new("GET", "/v2/").token(secret).send(&server.url).unwrap();
    let limited = (0..10).map(|_| base(&one)).find(|answer| answer.status == 429).expect("a limit");
    assert!(limited.text().contains("TOOMANYREQUESTS") && !limited.header("retry-after").is_empty(), "{limited:?}");
    // Others have their own.
    assert_eq!(base(&two).status, 200);

    let full = started("a_reserve_larger_than_the_disk", "[registry]\nreserve-mb = 1000000000000\n");
    let secret = create(&full, "one", "*:pull,push");
    let refused = upload(&full, &basic(&secret), "a");
    assert_eq!(refused.status, 507, "{}", refused.text());
    assert!(refused.text().contains("kept in reserve"), "{}", refused.text());
    assert_eq!(Ask::new("GET", "/v2/_catalog").token(&secret).send(&full.url).unwrap().status, 200);
}

#[test]
fn guesses_are_slowed_down_and_keep_nobody_out() {
    let server = started("guesses_are_slowed_down_and_keep_nobody_out", "");
    let secret = create(&server, "one", "*:pull");
    let base = |secret: &str| Ask::new("GET", "/v2/").token(secret).send(&server.url).unwrap();
    assert_eq!(base("guess").status, 401);
    let limited = (0..200).map(|_| base("guess")).find(|answer| answer.status == 429).expect("a limit");
    assert!(!limited.header("retry-after").is_empty());
    assert_eq!(base(&secret).status, 200);
}

#[test]
fn clients_log_in_with_a_named_token() {
    let test = "clients_log_in_with_a_named_token";
    if !installed("skopeo") {
        return skipped(test, "skopeo is not installed");
    }
    let server = started(test, "");
    let host = server.url.trim_start_matches("http://").to_owned();
    let secret = create(&server, "ci", "team/*:pull,push");
    let dir = fresh("clients_log_in_with_a_named_token_files");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("auth.json").display().to_string();
    // An image of nothing but what every image has.
    let layout = dir.join("image").display().to_string();
    std::fs::create_dir_all(&layout).unwrap();
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\
         \"application/vnd.oci.image.config.v1+json\",\"digest\":\"{}\",\"size\":{}}},\"layers\":[]}}",
        Digest::of(config),
        config.len()
    );
    std::fs::write(format!("{layout}/version"), "Directory Transport Version: 1.1\n").unwrap();
    std::fs::write(format!("{layout}/manifest.json"), manifest).unwrap();
    std::fs::write(format!("{layout}/{}", Digest::of(config).hex()), config).unwrap();
    let (from, dest) = (format!("dir:{layout}"), |name: &str| format!("docker://{host}/{name}"));
    for (number, tool) in ["skopeo", "podman", "buildah"].into_iter().enumerate() {
        if !installed(tool) {
            skipped(test, &format!("{tool} is not installed"));
            continue;
        }
        let login = ["login", "--tls-verify=false", "--authfile", &file, "-u", "ci", "-p"];
        run(Command::new(tool).args(login).args([&secret, &host])).ok();
        let wrong = run(Command::new(tool).args(login).args(["guess", &host]));
        assert_ne!(wrong.code, 0, "{tool} logs in with a guess");
        run(Command::new(tool).args(login).args([&secret, &host])).ok();
        let copy = |name: &str| {
            let flags = ["copy", "--preserve-digests", "--dest-tls-verify=false", "--dest-authfile", &file];
            run(Command::new("skopeo").args(flags).args([&from, &dest(name)]))
        };
        copy(&format!("team/web:v{number}")).ok();
        let outside = copy("other/web:v1");
        assert_ne!(outside.code, 0);
        // It looks with HEAD first, whose answer has no text.
        assert!(outside.err.contains("403"), "{}", outside.err);
        let tags = ["list-tags", "--tls-verify=false", "--authfile", &file, &dest("team/web")];
        assert!(run(Command::new("skopeo").args(tags)).ok().contains(&format!("v{number}")));
        run(Command::new(tool).args(["logout", "--authfile", &file, &host])).ok();
    }
}
