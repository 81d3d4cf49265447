//! Measures the release binary: what a person waits for, and what the parts underneath take, each
//! beside its goal and, where one is installed, beside a peer in the same run.
//!
//! A command of its own and never a test: times depend on the machine. Every part is bounded, and
//! a part that cannot run here says why and leaves the others alone.

mod beside;
mod capsule;
mod curve;
mod facts;
mod http;
mod process;
mod registry;
mod report;
mod sandbox;
mod serving;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use crate::report::Report;

/// The whole run ends after this time, whatever is left to do.
const WHOLE: Duration = Duration::from_mins(5);

/// Measures the release binary and prints a table with goals and peers
#[derive(Debug, Parser)]
struct Arguments {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Binary to measure (default: the one beside this one, brought up to date with cargo first)
    #[arg(long, value_name = "FILE")]
    adamant: Option<PathBuf>,
    /// Where the temporary data directory is made: its disk is what is measured
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Parts to measure (default: all but the curve)
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

/// Parts that can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Start to exit of `true`
    Sandbox,
    /// Facts per second
    Facts,
    /// Tour, pushes, rollback, proof, memory and registry: all on the tour's data
    World,
    /// Our registry and Debian's `docker-registry`, taking turns
    Registry,
    /// Pages, tags and pulls on the way to 100,000 tags and 10,000 repositories
    Curve,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let deadline = Instant::now() + WHOLE;
    let exe = match arguments.adamant {
        Some(exe) => exe.canonicalize().with_context(|| format!("{} cannot be measured", exe.display()))?,
        None => build()?,
    };
    let dir = arguments.dir.unwrap_or_else(std::env::temp_dir);
    let place = tempfile::Builder::new().prefix("adamant-bench-").tempdir_in(dir)?;
    let wanted = |part| if arguments.only.is_empty() { part != Part::Curve } else { arguments.only.contains(&part) };
    let mut report = Report::default();
    if wanted(Part::Sandbox) {
        measure(&mut report, "sandbox", |report| sandbox::measure(&exe, place.path(), report));
    }
    if wanted(Part::Facts) {
        measure(&mut report, "facts", |report| facts::measure(place.path(), report));
    }
    if wanted(Part::World) {
        measure(&mut report, "world", |report| world::measure(&exe, place.path(), deadline, report));
    }
    if wanted(Part::Registry) {
        measure(&mut report, "registry", |report| beside::measure(&exe, place.path(), report));
    }
    if wanted(Part::Curve) {
        measure(&mut report, "curve", |report| curve::measure(&exe, place.path(), report));
    }
    report.print(arguments.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs one part; its failure is a line of the report.
fn measure(report: &mut Report, part: &str, run: impl FnOnce(&mut Report) -> Result<()>) {
    report::say(&format!("measuring: {part}"));
    if let Err(error) = run(report) {
        report.note(format!("{part}: {error:#}"));
    }
}

/// Brings the release binary up to date. It lies beside this one.
fn build() -> Result<PathBuf> {
    let status = std::process::Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--package", "adamant"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .status()
        .context("cannot run cargo")?;
    anyhow::ensure!(status.success(), "the release binary does not build");
    let exe = std::env::current_exe()?.with_file_name("adamant");
    exe.canonicalize().with_context(|| format!("there is no {}: pass --adamant FILE", exe.display()))
}
