//! One binary: server, client and the small processes that outlive the server.

mod cli;
mod commands;
mod demo;
mod output;
mod project;

use std::process::ExitCode;

use output::Failure;

fn main() -> ExitCode {
    // The helpers come first: the sandbox must start in a process with one thread.
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("__sandbox") => adamant_sandbox::entry(),
        Some("__instance") => return adamant_deploy::instance(words, &adamant_server::verify_evidence),
        Some("__front") => return adamant_deploy::front(words),
        _ => {}
    }
    let arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    output::init_log(&arguments);
    // The provider is chosen here, once: libraries never install one.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return output::report(&Failure::bug("a TLS provider was installed before main"), false);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::report(&Failure::bug(format!("no async runtime: {error}")), false),
    };
    let json = arguments.json;
    let result = runtime.block_on(commands::run(arguments));
    // A blocked read of a terminal must not keep the process, nor work that a server which stops
    // has given its time already.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(code) => code,
        Err(failure) => output::report(&failure, json),
    }
}
