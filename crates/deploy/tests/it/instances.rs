//! Supervisors: restarts, refusals, isolation, re-adoption.

use std::net::TcpListener;
use std::time::Duration;

use adamant_attest::predicate::State;
use adamant_deploy::{ApplyError, Down, Local, Options, Outcome, Phase};
use adamant_sandbox::Sandbox;

use crate::http::get;
use crate::support::{HOST, World, applied, helper, until};
use crate::world;

async fn phase(world: &World) -> Phase {
    let observed = world.local.observe().await.unwrap();
    observed.first().and_then(|o| o.instances.first()).map_or(Phase::Gone, |i| i.status.phase)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_is_started_again() {
    let world = world!("a_program_that_ends_is_started_again");
    let image = world.image(false, &[]).await;
    world.deploy(1, image, "one").await;
    let port = world.port().await;
    assert_eq!(get(port, HOST, "/").unwrap().body, "one");
    assert_eq!(get(port, &format!("web.{HOST}:{port}"), "/").unwrap().body, "one");
    let mut follow = world.local.follow("dev", "shop");
    follow.poll();
    assert_eq!(get(port, HOST, "/say?hello").unwrap().body, "said");
    until("the line is in the log", async || follow.poll().iter().any(|l| l.text.ends_with(" out said hello"))).await;

    for _ in 0..2 {
        // The answer never comes: the program is gone.
        assert_eq!(get(port, HOST, "/crash").unwrap().status, 502);
        // Connections wait for the next start instead of failing.
        assert_eq!(get(port, HOST, "/").unwrap().body, "one");
    }
    until("healthy again", async || phase(&world).await == Phase::Healthy).await;
    let observed = world.local.observe().await.unwrap().remove(0);
    // A request is repeated once, so each of the two ended it twice.
    assert!(observed.instances[0].status.restarts >= 2);
    let lines = world.local.logs("dev", "shop", 50).await.unwrap();
    assert!(lines.iter().any(|l| l.text.contains("the program exited with 3; starting again in 100 ms")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_become_healthy_leaves_what_ran() {
    let world = world!("what_does_not_become_healthy_leaves_what_ran");
    let image = world.image(true, &[]).await;
    world.deploy(1, image, "one").await;
    let outcome = world.local.apply(&applied(2, image, &[("EXIT", "1")])).await.unwrap();
    let Outcome::Failed { reason } = outcome else { panic!("{outcome:?}") };
    assert!(reason.starts_with("2-web: the program exited with 7"), "{reason}");
    assert!(reason.contains("err told to exit"), "{reason}");
    // What failed is in the log, after what runs.
    let logs = world.local.logs("dev", "shop", 50).await.unwrap();
    let told: Vec<_> = logs.iter().filter(|l| l.text.ends_with("err told to exit")).collect();
    assert!(!told.is_empty() && told.iter().all(|l| l.instance == "2-web"), "{logs:?}");
    assert_eq!((logs.first().unwrap().instance.as_str(), logs.last().unwrap().instance.as_str()), ("1-web", "2-web"));
    let port = world.port().await;
    assert_eq!(get(port, HOST, "/").unwrap().body, "one");
    let observed = world.local.observe().await.unwrap().remove(0);
    assert_eq!((observed.generation, observed.state, observed.instances.len()), (1, State::Healthy, 1));

    // Accepted is accepted: what is older is refused, the same again is tried again.
    let older = world.local.apply(&applied(1, image, &[("NAME", "one")])).await;
    assert!(matches!(older, Err(ApplyError::Plan(_))), "{older:?}");
    assert!(older.unwrap_err().to_string().contains("deployment 1 is older than 2"));
    assert!(world.local.converge().await.is_empty());
    world.deploy(3, image, "three").await;
    let logs = world.local.logs("dev", "shop", 50).await.unwrap();
    assert!(logs.iter().all(|l| l.instance != "2-web"), "{logs:?}");
    assert_eq!(get(port, HOST, "/").unwrap().body, "three");
    let history = world.local.history("dev", "shop").await.unwrap();
    assert_eq!(history.iter().map(|r| r.healthy).collect::<Vec<_>>(), [Some(true), Some(false), Some(true)]);

    // Back with what the host itself remembers.
    let back = world.local.apply(&history[0].again(4)).await.unwrap();
    assert!(matches!(back, Outcome::Healthy { .. }), "{back:?}");
    assert_eq!(get(port, HOST, "/").unwrap().body, "one");
    // The same deployment again does nothing.
    assert!(matches!(world.local.apply(&history[0].again(4)).await.unwrap(), Outcome::Healthy { .. }));
    world.local.settle().await;
    assert_eq!(world.local.observe().await.unwrap()[0].instances.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_port_is_named() {
    let world = world!("a_wrong_port_is_named");
    let image = world.image(false, &[]).await;
    let mut options = Options::new(&world.dir(), helper());
    options.ready = Duration::from_secs(3);
    let local = Local::open(options, world.blobs.clone()).unwrap();
    let outcome = local.apply(&applied(1, image, &[("LISTEN", "8081")])).await.unwrap();
    let Outcome::Failed { reason } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("nothing accepts connections on port 8080"), "{reason}");
    assert!(reason.contains("PORT") && reason.contains("`port` of the recipe"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_has_so_many_processes_and_no_more() {
    let name = "an_instance_has_so_many_processes_and_no_more";
    let world = world!("an_instance_has_so_many_processes_and_no_more");
    if !Sandbox::new(helper()).capabilities().unwrap().pids_limit {
        eprintln!("skipped: {name}: this host limits no processes");
        return;
    }
    let image = world.image(false, &[]).await;
    world.deploy(1, image, "one").await;
    let port = world.port().await;
    let made: u32 = get(port, HOST, "/fork?5000").unwrap().body.parse().unwrap();
    assert!((3000..4096).contains(&made), "{made}");
    assert_eq!(get(port, HOST, "/").unwrap().body, "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_needed() {
    let world = world!("evidence_is_needed");
    let image = world.image(false, &[]).await;
    let mut applied = applied(1, image, &[]);
    applied.evidence = "trusted sha256:other".to_owned();
    let outcome = world.local.apply(&applied).await.unwrap();
    let Outcome::Failed { reason } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("refused: evidence: it is about something else"), "{reason}");
    assert_eq!(get(world.port().await, HOST, "/").unwrap().status, 421);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_files_never_start() {
    let world = world!("changed_files_never_start");
    let image = world.image(false, &[("etc/motd", "hello")]).await;
    world.deploy(1, image, "one").await;
    let port = world.port().await;
    let tree = world.local.trees().ensure(image).await.unwrap().tree;
    let file = world.dir().join("trees").join(tree.hex()).join("etc/motd");
    std::fs::write(&file, "he110").unwrap();
    let _ = get(port, HOST, "/crash");
    until("it is refused", async || phase(&world).await == Phase::Damaged).await;
    let observed = world.local.observe().await.unwrap().remove(0);
    assert_eq!(observed.state, State::Drift);
    assert!(observed.detail.contains("damaged at `etc/motd`"), "{}", observed.detail);
    assert_eq!(get(port, HOST, "/").unwrap().status, 503);

    let events = world.local.converge().await;
    assert!(events.iter().any(|e| e.what.contains("etc/motd") && e.what.contains("unpacked again")), "{events:?}");
    assert_eq!(get(port, HOST, "/").unwrap().body, "one");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "hello");

    // A configuration that was changed beside its rollout is refused by name, too.
    let instance = world.dir().join("local/dev/shop/instances/1-web");
    std::fs::write(instance.join("configuration.json"), r#"{"env":{"NAME":"evil"}}"#).unwrap();
    let _ = get(port, HOST, "/crash");
    until("it is refused", async || phase(&world).await == Phase::Refused).await;
    let detail = world.local.observe().await.unwrap().remove(0).detail;
    assert!(detail.contains("refused: configuration.json has sha256:"), "{detail}");
    world.local.converge().await;
    assert_eq!(get(port, HOST, "/").unwrap().body, "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_sees_nothing_of_the_host() {
    let world = world!("an_instance_sees_nothing_of_the_host");
    let image = world.image(false, &[]).await;
    world.deploy(1, image, "one").await;
    let port = world.port().await;
    let ask = |path: &str| get(port, HOST, path).unwrap().body;
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = outside.local_addr().unwrap().port();
    assert_eq!(ask(&format!("/tcp?{address}")), "Connection refused");
    assert_eq!(ask(&format!("/tcp?{port}")), "Connection refused");
    assert_eq!(ask(&format!("/see?{}", world.dir().display())), "No such file or directory");
    assert_eq!(ask("/see?/bin/app"), "seen");
    assert_eq!(ask("/write?/bin/app"), "Read-only file system");
    assert_eq!(ask("/write?/etc"), "Read-only file system");
    assert_eq!(ask("/write?/tmp/x"), "written");
    let head = get(port, HOST, "/headers").unwrap().body.to_lowercase();
    assert!(head.contains("x-forwarded-for: 127.0.0.1"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_found_again() {
    let world = world!("everything_is_found_again");
    let image = world.image(false, &[]).await;
    world.deploy(1, image, "one").await;
    let port = world.port().await;
    let before = world.local.observe().await.unwrap().remove(0);
    let again = World::open(&world.dir(), helper(), world.blobs.clone());
    assert_eq!(again.observe().await.unwrap(), std::slice::from_ref(&before));
    assert!(again.converge().await.is_empty());

    // A supervisor that is killed takes its program with it; both come back.
    let supervisor = i32::try_from(before.instances[0].status.supervisor).unwrap();
    kill(supervisor);
    until("it is gone", async || phase(&world).await == Phase::Gone).await;
    // The kernel ends the program after the supervisor: until then it may answer or break off.
    until("its program is gone, too", async || get(port, HOST, "/").is_ok_and(|answer| answer.status == 503)).await;
    let events = again.converge().await;
    assert_eq!(events.iter().map(|e| e.what.as_str()).collect::<Vec<_>>(), ["1-web started"]);
    // A connection that waited at the dead supervisor's socket may still be reset.
    until("it answers again", async || get(port, HOST, "/").is_ok_and(|answer| answer.body == "one")).await;

    // Everything stopped and brought back, on the same port.
    let down = again.down().await.unwrap();
    assert_eq!((down.instances, down.fronts), (1, 1));
    // A process that has answered takes a moment to end.
    until("nothing runs", async || again.down().await.unwrap() == Down::default()).await;
    assert!(get(port, HOST, "/").is_err());
    assert_eq!(again.observe().await.unwrap()[0].state, State::Failed);
    again.converge().await;
    assert_eq!(get(port, HOST, "/").unwrap().body, "one");
    assert_eq!(again.observe().await.unwrap()[0].url.as_deref(), Some(&*format!("http://{HOST}:{port}")));
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
