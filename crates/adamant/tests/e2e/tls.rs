//! TLS served directly, with a certificate of a CA made for the test.

use std::path::Path;
use std::process::Command;

use crate::process::{Background, Ended, installed, run, skipped, wait_for};
use crate::template::exe;
use crate::world::fresh;

fn openssl(dir: &Path, arguments: &[&str]) {
    run(Command::new("openssl").current_dir(dir).args(arguments)).ok();
}

/// A certificate for `registry.test`, signed by `ca.crt`.
fn certify(dir: &Path, serial: &str) {
    let subject = ["-subj", "/CN=registry.test", "-addext", "subjectAltName=DNS:registry.test,DNS:localhost"];
    let new = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(dir, &[&new[..], &["-keyout", "new.key", "-out", "new.csr"], &subject[..]].concat());
    let sign = ["x509", "-req", "-in", "new.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "2", "-set_serial"];
    openssl(dir, &[&sign[..], &[serial, "-copy_extensions", "copy", "-out", "new.crt"]].concat());
    std::fs::rename(dir.join("new.key"), dir.join("server.key")).unwrap();
    std::fs::rename(dir.join("new.crt"), dir.join("server.crt")).unwrap();
}

#[test]
fn everything_works_over_tls() {
    let test = "everything_works_over_tls";
    for tool in ["openssl", "curl", "skopeo", "git"] {
        if !installed(tool) {
            return skipped(test, &format!("{tool} is not installed"));
        }
    }
    let data = fresh(test).join("data");
    std::fs::create_dir_all(&data).unwrap();
    let ca = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    openssl(&data, &[&ca[..], &["-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test CA"]].concat());
    certify(&data, "1");
    let settings = "[server]\nhosts = [\"localhost\", \"registry.test\"]\n\n\
                    [tls]\ncertificate = \"server.crt\"\nkey = \"server.key\"\n";
    std::fs::write(data.join("server.toml"), settings).unwrap();
    let mut command = Command::new(exe());
    command.args(["up", "--listen", "0.0.0.0:0", "--data"]).arg(&data);
    let server = Background::spawn(&mut command);
    let line = server.out.wait(|line| line.contains(" on https://")).unwrap_or_else(|| panic!("{}", server.err.text()));
    let url =
        line.split_whitespace().find(|word| word.starts_with("https://")).unwrap().trim_end_matches(',').to_owned();
    let port = url.rsplit(':').next().unwrap().to_owned();
    assert_eq!(url, format!("https://localhost:{port}"));

    // The command line of this machine.
    let adamant = |arguments: &[&str]| run(Command::new(exe()).args(arguments).arg("--data").arg(&data));
    let secret = adamant(&["token", "create", "ci", "--scope", "team/*:pull,push"]).ok().trim().to_owned();
    assert!(adamant(&["login"]).ok().starts_with(&format!("{url}/login?once=")));

    let cafile = data.join("ca.crt").display().to_string();
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--noproxy", "*", "--max-time", "20", "--cacert", &cafile]).args(arguments);
        run(&mut command)
    };
    let status = |arguments: &[&str]| curl(&[&["-o", "/dev/null", "-w", "%{http_code}"][..], arguments].concat()).ok();
    let at = format!("registry.test:{port}:127.0.0.1");
    let named = format!("https://registry.test:{port}");
    assert_eq!(status(&[&format!("{url}/healthz")]), "200");
    assert_eq!(status(&["--resolve", &at, &format!("{named}/healthz")]), "200");
    assert_eq!(status(&["-H", "Host: evil.example", &format!("{url}/healthz")]), "421");
    assert_eq!(status(&["-u", &format!("me:{secret}"), &format!("{url}/v2/")]), "200");
    let headers = curl(&["-D", "-", "--resolve", &at, &format!("{named}/v2/")]).ok();
    assert!(headers.contains(&format!("realm=\"{named}/v2/token\"")), "{headers}");
    // Over an address of the machine, as far as a certificate goes.
    assert_eq!(status(&["-k", &format!("https://127.0.0.1:{port}/healthz")]), "200");
    // Plain HTTP gets no answer.
    assert_ne!(curl(&[&format!("http://localhost:{port}/healthz")]).code, 0);

    // A registry client with the CA, and without.
    let certs = data.join("certs.d");
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::copy(data.join("ca.crt"), certs.join("ca.crt")).unwrap();
    let auth = data.join("auth.json").display().to_string();
    let login = |extra: &[&str]| -> Ended {
        let mut command = Command::new("skopeo");
        command.env("no_proxy", "*").args(["login", "--authfile", &auth, "-u", "ci", "-p", &secret]);
        run(command.args(extra).arg(format!("localhost:{port}")))
    };
    login(&["--cert-dir", &certs.display().to_string()]).ok();
    assert_ne!(login(&[]).code, 0, "an unknown CA is trusted");

    // git with the CA and the credential helper.
    let repo = data.join("repo");
    std::fs::create_dir_all(&repo).unwrap();
    let git = |arguments: &[&str]| {
        let helper = format!("credential.helper=!{} credential --data {}", exe().display(), data.display());
        let mut command = Command::new("git");
        command.current_dir(&repo).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
        // Wins over the variable of whoever runs the tests.
        command.env("no_proxy", "*").env("GIT_SSL_CAINFO", &cafile).args(["-c", &helper]).args(arguments);
        run(&mut command)
    };
    let body = ["-H", "Content-Type: application/json", "-d", "{\"name\":\"shop\"}"];
    let token = adamant(&["token"]).ok().trim().to_owned();
    let bearer = format!("Authorization: Bearer {token}");
    let made = curl(&[&body[..], &["-H", &bearer, &format!("{url}/api/v1/projects")]].concat()).ok();
    assert!(made.contains(&format!("{url}/git/shop.git")), "{made}");
    git(&["ls-remote", &format!("{url}/git/shop.git")]).ok();

    // A new certificate is served without a restart.
    let serial = || {
        let script = format!(
            "openssl s_client -connect 127.0.0.1:{port} -servername registry.test </dev/null 2>/dev/null \
             | openssl x509 -noout -serial"
        );
        run(Command::new("sh").args(["-c", &script])).out.trim().to_owned()
    };
    assert_eq!(serial(), "serial=01");
    certify(&data, "2");
    server.signal(rustix::process::Signal::HUP);
    wait_for("the new certificate", || (serial() == "serial=02").then_some(()));
    // One that does not fit changes nothing.
    std::fs::write(data.join("server.key"), "no key").unwrap();
    server.signal(rustix::process::Signal::HUP);
    wait_for("the refusal", || server.err.text().contains("stays in force").then_some(()));
    assert_eq!(serial(), "serial=02");
}
