//! `demo --break`: what an attacker, an administrator or an accident might do to the tour's
//! installation. Each thing is really done; each must be refused or caught, by name.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use adamant_api::{FsckReport, Status};
use adamant_client::Server;
use adamant_digest::Digest;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{GIT_IDENTITY, PROJECT, WORK_TREE, fetch};
use crate::output::{self, Failure, say};

/// How a digest stands in a lock.
const MEMBER: &str = "\nsha256 = \"";
/// How long a supervisor gets to notice.
const PATIENCE: Duration = Duration::from_secs(20);

struct Attack {
    data: PathBuf,
    work: PathBuf,
    exe: PathBuf,
    server: Server,
    held: usize,
    failed: Vec<String>,
}

/// Attacks the demo of `data`, whose server must be up.
pub(crate) async fn attack(data: &Path) -> Result<ExitCode, Failure> {
    if data.join("adamant.db").exists() && !data.join(WORK_TREE).exists() {
        return Err(super::not_ours(data));
    }
    let server = adamant_client::connect(data).await.map_err(|error| {
        Failure::from(error)
            .hint(format!("start the tour first and leave it up: `adamant demo --data {}`", data.display()))
    })?;
    let work = data.join(WORK_TREE);
    if !work.join("adamant.lock").exists() {
        return Err(Failure::usage("the tour has not run here").hint("run `adamant demo` first"));
    }
    let exe = std::env::current_exe()?;
    let mut attack = Attack { data: data.to_owned(), work, exe, server, held: 0, failed: Vec::new() };
    attack.overwrite_tag().await?;
    attack.flip_byte().await?;
    attack.edit_row().await?;
    attack.swap_file().await?;
    attack.move_tag_under_lock()?;
    attack.move_git_tag()?;
    let report = attack.fsck()?;
    attack.expect("afterwards", "everything is whole again", report.findings.is_empty(), told(report.findings.first()));
    if attack.failed.is_empty() {
        output::result(format!("{} attacks, each refused or caught", attack.held))?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::no(format!("not held: {}", attack.failed.join("; "))))
}

impl Attack {
    fn expect(&mut self, what: &str, how: &str, held: bool, evidence: impl AsRef<str>) {
        let evidence: String = evidence.as_ref().chars().take(400).collect();
        say(format!(
            "{} {what}: {how}\n     {}",
            if held { "held  " } else { "BROKEN" },
            evidence.trim().replace('\n', "\n     ")
        ));
        if held {
            self.held += 1;
        } else {
            self.failed.push(what.to_owned());
        }
    }

    async fn status(&self) -> Result<Status, Failure> {
        Ok(self.server.get(&format!("/projects/{PROJECT}")).await?)
    }

    /// The artifact that runs in prod: its repository's tag and its digest.
    async fn running(&self) -> Result<(u64, Digest), Failure> {
        let status = self.status().await?;
        let prod = status.environments.iter().find(|e| e.name == "prod").and_then(|e| e.current.clone());
        let release = prod.map(|d| d.release).ok_or_else(|| Failure::usage("nothing runs in prod"))?;
        let release = status.releases.iter().find(|r| r.name == release);
        let release = release.ok_or_else(|| Failure::usage("the release of prod is not among the newest"))?;
        let artifact = release.artifacts.first().ok_or_else(|| Failure::bug("a release without artifact"))?;
        Ok((release.number, artifact.digest))
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.data.join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    fn fsck(&self) -> Result<FsckReport, Failure> {
        let output = Command::new(&self.exe).args(["fsck", "--json"]).env("ADAMANT_DATA", &self.data).output()?;
        serde_json::from_slice(&output.stdout).map_err(|e| Failure::bug(format!("fsck is not understood: {e}")))
    }

    async fn overwrite_tag(&mut self) -> Result<(), Failure> {
        let (number, digest) = self.running().await?;
        let manifest = std::fs::read_to_string(self.blob(digest))?;
        let mut other: serde_json::Value = serde_json::from_str(&manifest).map_err(|e| Failure::bug(e.to_string()))?;
        other["annotations"] = serde_json::json!({ "attack": "another image under your tag" });
        let kind = other["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned();
        let path = format!("/v2/{PROJECT}/web/manifests/{number}");
        let (status, body) = self.raw("PUT", &path, &kind, other.to_string().as_bytes()).await?;
        self.expect(
            "overwrite a tag",
            "409, with both digests",
            status == 409 && body.contains(&digest.to_string()),
            body,
        );
        let (status, body) = self.raw("DELETE", &path, &kind, b"").await?;
        self.expect("delete a tag", "405", status == 405, body);
        Ok(())
    }

    async fn flip_byte(&mut self) -> Result<(), Failure> {
        let (_, digest) = self.running().await?;
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.blob(digest))?).map_err(|e| Failure::bug(e.to_string()))?;
        let layer =
            manifest["layers"].as_array().and_then(|l| l.last()).and_then(|l| l["digest"].as_str()).unwrap_or_default();
        let layer: Digest = layer.parse().map_err(|_| Failure::bug("a manifest without layers"))?;
        let path = self.blob(layer);
        let right = std::fs::read(&path)?;
        let mut wrong = right.clone();
        let middle = wrong.len() / 2;
        wrong[middle] ^= 1;
        overwrite(&path, &wrong)?;
        let got = self.raw("GET", &format!("/v2/{PROJECT}/web/blobs/{layer}"), "", b"").await;
        let (never, how) = match got {
            // A connection cut before the last byte is how a stream says no.
            Err(error) => (true, error.error.message),
            Ok((200, body)) => (body.len() < right.len(), "the body ends early".to_owned()),
            Ok((status, body)) => (status >= 500, body),
        };
        self.expect("flip a byte of a stored blob", "wrong bytes are never served", never, how);
        let report = self.fsck()?;
        let named = report.findings.iter().find(|f| f.object.contains(&layer.hex()));
        self.expect("flip a byte of a stored blob", "fsck names it", named.is_some(), told(named));
        let (status, body) = self.push_blob(layer, &right).await?;
        let healed = std::fs::read(&path)? == right;
        self.expect("heal it", "pushing the right bytes replaces the damaged ones", healed, format!("{status} {body}"));
        Ok(())
    }

    async fn edit_row(&mut self) -> Result<(), Failure> {
        let (number, _) = self.running().await?;
        let name = format!("{PROJECT}/web:{number}");
        let database = SqliteConnectOptions::new().filename(self.data.join("adamant.db")).busy_timeout(PATIENCE);
        let failed = |e: sqlx::Error| Failure::bug(format!("the database cannot be edited: {e}"));
        let mut connection = SqliteConnection::connect_with(&database).await.map_err(failed)?;
        let before: Vec<u8> = sqlx::query_scalar("SELECT digest FROM bindings WHERE kind = 'tag' AND name = ?")
            .bind(&name)
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
        let update = "UPDATE bindings SET digest = ? WHERE kind = 'tag' AND name = ?";
        let other = Digest::of(b"another image").as_bytes().to_vec();
        sqlx::query(update).bind(other).bind(&name).execute(&mut connection).await.map_err(failed)?;
        let report = self.fsck();
        sqlx::query(update).bind(before).bind(&name).execute(&mut connection).await.map_err(failed)?;
        let report = report?;
        let named = report.findings.iter().find(|f| f.object.contains("bindings"));
        self.expect("edit a database row", "fsck names the row", named.is_some(), told(named));
        Ok(())
    }

    async fn swap_file(&mut self) -> Result<(), Failure> {
        let url = self.url("prod").await?;
        let trees = self.data.join("trees");
        // The program of what runs in prod is in one of the unpacked trees; swap them all.
        let mut swapped = Vec::new();
        for entry in std::fs::read_dir(&trees)?.flatten() {
            let file = entry.path().join("app/shop");
            if file.is_file() {
                let right = std::fs::read(&file)?;
                replace(&file, b"#!/bin/sh\necho owned\n")?;
                swapped.push((file, right));
            }
        }
        let report = self.fsck()?;
        let named = report.findings.iter().find(|f| f.object.starts_with("tree ") && f.problem.contains("app/shop"));
        self.expect("swap an instance's file", "fsck names tree and file", named.is_some(), told(named));
        let killed = self.kill_instances();
        let begin = Instant::now();
        let mut last = String::new();
        let mut back = false;
        while begin.elapsed() < PATIENCE * 3 && !back {
            match fetch(&url).await {
                Ok(body) if body.contains("version") => back = true,
                Ok(body) => last = body,
                Err(failure) => last = failure.error.message,
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let how = format!(
            "{killed} programs killed; {} after {:.1} s",
            if back { "serving the right bytes" } else { &last },
            begin.elapsed().as_secs_f64()
        );
        let never = !last.contains("owned");
        self.expect(
            "swap an instance's file",
            "the swapped file never runs; the tree is made again from verified blobs",
            back && never,
            how,
        );
        let untouched = swapped.iter().filter(|(file, right)| std::fs::read(file).ok().as_ref() != Some(right));
        for (file, right) in untouched {
            // Trees of releases that run nowhere are made again when they are used next.
            replace(file, right)?;
        }
        Ok(())
    }

    /// Ends the programs (not their supervisors), as a crash would.
    fn kill_instances(&self) -> usize {
        let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
        let mut killed = 0;
        for entry in entries.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if line.starts_with(b"/app/shop\0")
                && self.supervises(pid)
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
                && rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok()
            {
                killed += 1;
            }
        }
        killed
    }

    /// Whether a process belongs to a supervisor of this data directory: another demo's are not
    /// ours to kill.
    fn supervises(&self, pid: i32) -> bool {
        let data = self.data.to_string_lossy().into_owned();
        let mut pid = pid;
        for _ in 0..6 {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&data) {
                return true;
            }
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            match parent.and_then(|parent| parent.trim().parse().ok()) {
                Some(parent) if parent > 1 => pid = parent,
                _ => return false,
            }
        }
        false
    }

    /// The same package name and version, other bytes: what a mirror that moved would offer.
    fn move_tag_under_lock(&mut self) -> Result<(), Failure> {
        let path = self.work.join("adamant.lock");
        let right = std::fs::read_to_string(&path)?;
        let start = right.find(MEMBER).ok_or_else(|| Failure::bug("a lock without digests"))? + MEMBER.len();
        let other = Digest::of(b"moved").hex();
        let moved = format!("{}{other}{}", &right[..start], &right[start + other.len()..]);
        std::fs::write(&path, moved)?;
        let pushed = self
            .git(&["commit", "--quiet", "--all", "-m", "The upstream moved"])
            .and_then(|_| self.git(&["push", "adamant", "HEAD:moved"]));
        let restored = self.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
        let (ok, text) = pushed?;
        restored?;
        let line = text.lines().find(|line| line.contains("is bound to")).unwrap_or(&text).to_owned();
        self.expect(
            "move a tag under a lock",
            "the push is refused, both digests named",
            !ok && text.contains("is bound to") && text.contains(&other),
            line,
        );
        Ok(())
    }

    fn move_git_tag(&mut self) -> Result<(), Failure> {
        let tag = "attacked";
        self.git(&["tag", "--force", tag, "HEAD~1"])?;
        self.git(&["push", "adamant", tag])?;
        self.git(&["tag", "--force", tag, "HEAD"])?;
        let (ok, text) = self.git(&["push", "--force", "adamant", tag])?;
        let line = text.lines().find(|line| line.contains("rejected")).unwrap_or(&text).to_owned();
        self.expect("move a git tag", "the push is refused", !ok, line);
        Ok(())
    }

    fn git(&self, arguments: &[&str]) -> Result<(bool, String), Failure> {
        let output = Command::new("git")
            .args(GIT_IDENTITY)
            .args(arguments)
            .current_dir(&self.work)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Failure::usage("cannot run git").cause(error))?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), text))
    }

    async fn url(&self, environment: &str) -> Result<String, Failure> {
        let status = self.status().await?;
        let found = status.environments.into_iter().find(|e| e.name == environment).and_then(|e| e.url);
        found.ok_or_else(|| Failure::usage(format!("{environment} has no address")))
    }

    async fn push_blob(&self, digest: Digest, bytes: &[u8]) -> Result<(u16, String), Failure> {
        let path = format!("/v2/{PROJECT}/web/blobs/uploads/?digest={digest}");
        self.raw("POST", &path, "application/octet-stream", bytes).await
    }

    /// A request to the registry, as any client could send it.
    async fn raw(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<(u16, String), Failure> {
        let authority = self.server.url.trim_start_matches("http://").to_owned();
        let broken = |e: std::io::Error| Failure::new(adamant_api::Class::Unavailable, format!("{method} {path}: {e}"));
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(&authority).await?;
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer {}\r\nContent-Type: {kind}\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                self.server.token(),
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body).await?;
            let mut answer = Vec::new();
            stream.take(64 << 20).read_to_end(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = exchange.await.map_err(broken)?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Ok((status, body))
    }
}

/// A finding as `fsck` prints it.
fn told(finding: Option<&adamant_api::Finding>) -> String {
    finding.map_or_else(|| "fsck found nothing".to_owned(), |f| format!("fsck: {}: {}", f.object, f.problem))
}

/// Writes other bytes into the same file, as a bad disk would.
fn overwrite(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
    std::fs::write(path, bytes)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444))?;
    Ok(())
}

/// Puts another file in a file's place: a running program's own file cannot be written.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    let temp = path.with_extension("swap");
    std::fs::write(&temp, bytes)?;
    std::fs::set_permissions(&temp, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(&temp, path)?;
    Ok(())
}
