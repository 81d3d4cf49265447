//! Commands that look: `status`, `logs`, `diff`, `prove`, `verify`, `fsck` and small ones.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use adamant_api::{Diff, FsckReport, PointerMove, Project, Status};
use serde_json::json;

use super::{connect, segment};
use crate::output::{self, Failure, say};
use crate::project;

pub(super) async fn status(data: Option<&Path>, named: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
    let Ok(project) = project::project(named) else { return projects(data, json).await };
    let server = connect(data).await?;
    let status: Status = server.get(&format!("/projects/{}", segment(&project))).await?;
    if json {
        output::json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    for environment in &status.environments {
        let held = if environment.held { "  held since a rollback" } else { "" };
        let line = match &environment.current {
            Some(d) => {
                let url = environment.url.as_deref().unwrap_or_default();
                format!("{:<10} {:<12} {:<8} {}  {url}{held}", environment.name, d.release, d.state, d.at)
            }
            None => format!("{:<10} nothing yet", environment.name),
        };
        output::result(line)?;
    }
    for release in &status.releases {
        let running = if release.running_in.is_empty() {
            String::new()
        } else {
            format!("  [{}]", release.running_in.join(", "))
        };
        let short = release.commit.get(..7).unwrap_or(&release.commit);
        output::result(format!(
            "{:<12} {short} {:<8} {:<8} \"{}\"{running}",
            release.name, release.state, release.grade, release.subject
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Outside of a repository: what there is.
async fn projects(data: Option<&Path>, json: bool) -> Result<ExitCode, Failure> {
    let projects: Vec<Project> = connect(data).await?.get("/projects").await?;
    if json {
        output::json(&projects)?;
        return Ok(ExitCode::SUCCESS);
    }
    for project in &projects {
        output::result(format!("{:<20} {}", project.name, project.remote))?;
    }
    say(if projects.is_empty() {
        "no project yet: run `adamant init` in a git repository"
    } else {
        "`adamant status PROJECT` shows one"
    });
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn logs(
    data: Option<&Path>,
    what: &str,
    named: Option<&str>,
    follow: bool,
) -> Result<ExitCode, Failure> {
    let server = connect(data).await?;
    let is_release = what.contains('/') || what.bytes().all(|b| b.is_ascii_digit());
    let follow = if follow { "?follow=true" } else { "" };
    let path = if is_release {
        let (project, number) = project::release(what, named)?;
        format!("/projects/{}/releases/{number}/log{follow}", segment(&project))
    } else {
        format!("/projects/{}/environments/{}/log{follow}", segment(&project::project(named)?), segment(what))
    };
    let mut failed = None;
    server
        .follow(&path, |line| {
            if failed.is_none() {
                failed = writeln!(std::io::stdout(), "{line}").err();
            }
        })
        .await?;
    failed.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
}

pub(super) async fn diff(
    data: Option<&Path>,
    from: &str,
    to: &str,
    named: Option<&str>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let in_name = |text: &str| text.split_once('/').map(|(project, _)| project.to_owned());
    let project = match named.map(str::to_owned).or_else(|| in_name(from)).or_else(|| in_name(to)) {
        Some(project) => project,
        None => project::project(None)?,
    };
    let server = connect(data).await?;
    let path = format!("/projects/{}/diff?from={}&to={}", segment(&project), segment(from), segment(to));
    let diff: Diff = server.get(&path).await?;
    if json {
        output::json(&diff)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::result(format!("{} → {}", diff.from, diff.to))?;
    for (id, subject) in &diff.commits {
        output::result(format!("commit   {} \"{subject}\"", id.get(..7).unwrap_or(id)))?;
    }
    for line in &diff.inputs {
        output::result(format!("input    {line}"))?;
    }
    for (name, old, new) in &diff.artifacts {
        let text =
            |digest: &Option<adamant_digest::Digest>| digest.map_or_else(|| "none".to_owned(), |d| d.to_string());
        output::result(format!("artifact {name} {} → {}", text(old), text(new)))?;
    }
    if diff.commits.is_empty() && diff.inputs.is_empty() && diff.artifacts.is_empty() {
        output::result("no difference")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn prove(
    data: Option<&Path>,
    environment: &str,
    sequence: Option<u64>,
    named: Option<&str>,
    file: Option<&Path>,
) -> Result<ExitCode, Failure> {
    let project = project::project(named)?;
    let server = connect(data).await?;
    let at = sequence.map(|n| format!("?sequence={n}")).unwrap_or_default();
    let path = format!("/projects/{}/environments/{}/capsule{at}", segment(&project), segment(environment));
    let capsule = server.get_bytes(&path).await?;
    match file {
        Some(file) => {
            std::fs::write(file, &capsule).map_err(|error| {
                let failure = Failure::usage(format!("cannot write {}", file.display()));
                failure.cause(error).hint("name a file in a directory that is there: `-o prod.capsule`")
            })?;
            say(format!(
                "{} bytes; check it anywhere: adamant verify {} --trust trust.json",
                capsule.len(),
                file.display()
            ));
        }
        None => std::io::stdout().write_all(&capsule)?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn verify(capsule: &Path, trust: &Path, json: bool) -> Result<ExitCode, Failure> {
    let read = |path: &Path, what: &str| {
        std::fs::read(path).map_err(|error| {
            Failure::usage(format!("cannot read the {what} {}", path.display()))
                .cause(error)
                .hint("the trust file is trust.json of the server's data directory: get it once, over a way you trust")
        })
    };
    let trust = adamant_audit::Trust::parse(&read(trust, "trust file")?)
        .map_err(|error| Failure::usage(format!("{} is not a trust file", trust.display())).cause(error))?;
    let refused =
        |error: &dyn std::fmt::Display| Failure::no(format!("{} proves nothing", capsule.display())).cause(error);
    let parsed = adamant_audit::Capsule::parse(&read(capsule, "capsule")?).map_err(|error| refused(&error))?;
    let report = adamant_audit::verify(&parsed, &trust).map_err(|error| refused(&error))?;
    if json {
        output::json(&report)?;
    } else {
        output::result(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn fsck(data: &Path, json: bool) -> Result<ExitCode, Failure> {
    let settings = adamant_server::Settings::load(data, None)?;
    let report: FsckReport =
        adamant_server::fsck(data, &settings, &super::server::access_key(), &mut output::progress).await?;
    if json {
        output::json(&report)?;
    } else {
        for finding in &report.findings {
            output::result(format!("{}: {}", finding.object, finding.problem))?;
        }
        for note in &report.notes {
            say(format!("note: {}: {}", note.object, note.problem));
        }
        say(format!(
            "{} entries, {} blobs, {} trees, {} commits recomputed",
            report.entries, report.blobs, report.trees, report.commits
        ));
    }
    if report.findings.is_empty() {
        if !json {
            output::result("nothing is wrong")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::no(format!("{} things are wrong", report.findings.len()))
        .hint("docs/operations.md, \"When fsck finds something\""))
}

pub(super) async fn token(data: Option<&Path>, json: bool) -> Result<ExitCode, Failure> {
    let server = connect(data).await?;
    if json {
        output::json(&json!({ "url": server.url, "token": server.token() }))?;
    } else {
        output::result(server.token())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn login(data: Option<&Path>, json: bool) -> Result<ExitCode, Failure> {
    let link = adamant_client::login_link(&project::data_dir(data)?).await?;
    if json {
        output::json(&json!({ "link": link }))?;
    } else {
        output::result(link)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn doctor(json: bool) -> Result<ExitCode, Failure> {
    let findings = adamant_server::doctor(std::env::current_exe()?);
    if json {
        output::json(&findings)?;
    } else {
        for finding in &findings {
            output::result(format!(
                "{:<24} {:<4} {}",
                finding.what,
                if finding.ok { "ok" } else { "no" },
                finding.detail
            ))?;
        }
    }
    let needed = findings.iter().filter(|finding| finding.needed && !finding.ok).count();
    if needed == 0 { Ok(ExitCode::SUCCESS) } else { Err(Failure::no(format!("{needed} needed things are missing"))) }
}

pub(super) async fn pointer(data: Option<&Path>, name: &str, json: bool) -> Result<ExitCode, Failure> {
    let moves: Vec<PointerMove> = connect(data).await?.get(&format!("/pointer?name={}", segment(name))).await?;
    if json {
        output::json(&moves)?;
        return Ok(ExitCode::SUCCESS);
    }
    for step in moves {
        output::result(format!("{:<5} {}  {}  by {}", step.sequence, step.at, step.digest, step.by))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The protocol of `git help credential`: attributes in, attributes out.
pub(super) async fn credential(data: Option<&Path>, operation: &str) -> Result<ExitCode, Failure> {
    if operation != "get" {
        return Ok(ExitCode::SUCCESS);
    }
    let mut request = String::new();
    std::io::stdin().take(64 * 1024).read_to_string(&mut request)?;
    let attribute = |name: &str| {
        request.lines().filter_map(|line| line.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let server = connect(data).await?;
    // The token is for this server alone: it is never given to another host.
    let asked = format!("{}://{}", attribute("protocol").unwrap_or_default(), attribute("host").unwrap_or_default());
    if asked == server.url {
        output::result(format!("username=adamant\npassword={}", server.token()))?;
    }
    Ok(ExitCode::SUCCESS)
}
