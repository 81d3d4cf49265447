//! The executable the integration tests start fronts, instances and sandboxes with. Its evidence
//! is the word `trusted` followed by the rollout's digest, so that both answers can be tested.

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("__sandbox") => adamant_sandbox::entry(),
        Some("__front") => adamant_deploy::front(arguments),
        Some("__instance") => adamant_deploy::instance(arguments, &|claim| {
            let expected = format!("trusted {}", claim.rollout);
            if claim.evidence == expected.as_bytes() { Ok(()) } else { Err("it is about something else".to_owned()) }
        }),
        Some("apply") => apply(arguments.next().unwrap_or_default().as_ref()),
        _ => std::process::ExitCode::FAILURE,
    }
}

/// Plays a server: deploys what lies in a directory and stays, to be killed at any point.
fn apply(dir: &std::path::Path) -> std::process::ExitCode {
    use adamant_deploy::{Applied, Local, Options};
    let work = async {
        let read = |name: &str| std::fs::read(dir.join(name));
        let text = |bytes| String::from_utf8(bytes).map_err(std::io::Error::other);
        let blobs = std::sync::Arc::new(adamant_store::FsBlobs::open(&dir.join("blobs"))?);
        let options = Options::new(dir, std::env::current_exe()?);
        let local = Local::open(options, blobs).map_err(std::io::Error::other)?;
        let applied = Applied {
            generation: text(read("generation")?)?.parse().map_err(std::io::Error::other)?,
            rollout: read("rollout.json")?,
            configuration: read("configuration.json")?,
            evidence: text(read("evidence")?)?,
            port: None,
        };
        local.apply(&applied).await.map_err(std::io::Error::other)?;
        std::fs::write(dir.join("applied"), "")?;
        std::future::pending::<std::io::Result<()>>().await
    };
    let run = || tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work);
    run().map_or(std::process::ExitCode::FAILURE, |()| std::process::ExitCode::SUCCESS)
}
