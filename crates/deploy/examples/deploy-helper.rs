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
        _ => std::process::ExitCode::FAILURE,
    }
}
