//! The exec work: what becomes of a child, its lines and its children.

use super::*;

async fn exec() -> (Operator, Runtime) {
    let bus = Bus::memory();
    let operator = Operator::on(&bus).await;
    let work = Exec { grace: Duration::from_millis(300), ..Exec::on_nats(Commands::InLine) };
    let runtime = start(bus, options("exec"), work).await.unwrap();
    (operator, runtime)
}

fn sh(script: &str) -> Value {
    json!({"x-exec": {"command": ["sh", "-c", script], "env": {"GREETING": "hello"}}})
}

/// The final report of one command.
async fn ending(operator: &mut Operator, spec: &Value) -> StateMessage {
    operator.offer("p", "t", spec).await;
    operator.grant().await;
    operator.state().await
}

#[tokio::test]
async fn the_lines_of_a_child_are_log_messages_and_its_success_a_report() {
    let (mut operator, _runtime) = exec().await;
    let state = ending(&mut operator, &sh("echo $GREETING $PMP_PHASE_ID; printf last")).await;
    assert_eq!(state.status, ReportStatus::Complete);
    assert_eq!([operator.log_line().await, operator.log_line().await], ["hello p", "last"]);
}

#[tokio::test]
async fn the_exit_status_or_the_signal_is_the_message_of_a_failure() {
    let (mut operator, _runtime) = exec().await;
    let state = ending(&mut operator, &sh("exit 3")).await;
    assert_eq!((state.status, state.message.as_deref()), (ReportStatus::Failed, Some("exit status 3")));
    operator.offer("p", "t2", &sh("kill -KILL $$")).await;
    operator.grant().await;
    assert_eq!(operator.state().await.message.as_deref(), Some("ended by signal 9"));
}

#[tokio::test]
async fn a_command_that_does_not_exist_fails_with_its_name() {
    let (mut operator, _runtime) = exec().await;
    let state = ending(&mut operator, &json!({"x-exec": {"command": ["/no/such/program"]}})).await;
    assert!(state.message.unwrap().contains("/no/such/program"));
}

#[tokio::test]
async fn no_shell_is_implied_and_the_working_directory_is_obeyed() {
    let (mut operator, _runtime) = exec().await;
    let spec = json!({"x-exec": {"command": ["pwd"], "workingDir": "/"}});
    assert_eq!(ending(&mut operator, &spec).await.status, ReportStatus::Complete);
    assert_eq!(operator.log_line().await, "/");
    operator.offer("p", "t2", &json!({"x-exec": {"command": ["echo", "$HOME;", "ls"]}})).await;
    operator.grant().await;
    assert_eq!(operator.log_line().await, "$HOME; ls");
}

#[tokio::test]
async fn the_runtimes_own_environment_stays_its_own_on_nats() {
    let (mut operator, _runtime) = exec().await;
    // Cargo sets this for every test.
    assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
    ending(&mut operator, &sh("echo \"<$CARGO_PKG_NAME>\"")).await;
    assert_eq!(operator.log_line().await, "<>");
}

#[tokio::test]
async fn a_cancel_stops_the_child_and_its_children_even_if_they_ignore_sigterm() {
    let (mut operator, _runtime) = exec().await;
    operator.offer("p", "t", &sh("trap '' TERM; (trap '' TERM; echo $$; sleep 600) & wait; sleep 600")).await;
    operator.grant().await;
    let group = operator.log_line().await;
    operator.control(&json!({"command": "cancel", "x-phaseId": "p"})).await;
    let state = operator.state().await;
    assert_eq!((state.status, state.message.as_deref()), (ReportStatus::Failed, Some("cancelled")));
    let group = rustix::process::Pid::from_raw(group.trim().parse().unwrap()).unwrap();
    until_nobody_is_left(group).await;
}

async fn until_nobody_is_left(group: rustix::process::Pid) {
    // Killed members are gone once init has collected them.
    timeout(DEADLINE, async {
        while rustix::process::test_kill_process_group(group).is_ok() && any_alive(group) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("nobody is left in the group");
}

#[tokio::test]
async fn the_children_of_a_runtime_that_is_dropped_are_killed() {
    let (mut operator, runtime) = exec().await;
    operator.offer("p", "t", &sh("trap '' TERM; sleep 600 & echo $$; wait")).await;
    operator.grant().await;
    let group = rustix::process::Pid::from_raw(operator.log_line().await.parse().unwrap()).unwrap();
    drop(runtime);
    until_nobody_is_left(group).await;
}

#[tokio::test]
async fn whoever_outlives_the_shell_has_the_grace_too() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::memory();
    let mut operator = Operator::on(&bus).await;
    let work = Exec { grace: Duration::from_secs(15), ..Exec::on_nats(Commands::InLine) };
    let _runtime = start(bus, options("exec"), work).await.unwrap();
    // The shell ends by the signal at once; who does the work puts its things away first.
    let done = dir.path().join("tidied").display().to_string();
    let worker = format!("trap 'sleep 0.3; echo > {done}; exit 1' TERM; echo ready; while :; do sleep 0.05; done");
    operator.offer("p", "t", &json!({"x-exec": {"command": ["sh", "-c", "sh -c \"$0\"; exit 0", worker]}})).await;
    operator.grant().await;
    assert_eq!(operator.log_line().await, "ready");
    operator.control(&json!({"command": "cancel", "x-phaseId": "p"})).await;
    assert_eq!(operator.state().await.message.as_deref(), Some("cancelled"));
    assert!(std::fs::exists(&done).unwrap(), "it was killed before it could tidy");
}

/// Whether a member of the group is more than a corpse that nobody has collected.
fn any_alive(group: rustix::process::Pid) -> bool {
    let members = std::process::Command::new("ps").args(["-eo", "pgid=,stat="]).output().unwrap();
    let wanted = group.as_raw_nonzero().to_string();
    String::from_utf8_lossy(&members.stdout).lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some(wanted.as_str()) && !words.next().unwrap_or("").starts_with('Z')
    })
}

#[tokio::test]
async fn what_a_complete_child_leaves_behind_goes_on_and_does_not_keep_its_phase_open() {
    let (mut operator, _runtime) = exec().await;
    let state = ending(&mut operator, &sh("sleep 600 & echo $!")).await;
    assert_eq!(state.status, ReportStatus::Complete);
    let pid = rustix::process::Pid::from_raw(operator.log_line().await.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn what_a_failed_child_leaves_behind_has_ended_before_the_next_attempt() {
    let (mut operator, _runtime) = exec().await;
    let state = ending(&mut operator, &sh("trap '' TERM; sleep 600 & echo $$; exit 1")).await;
    assert_eq!((state.status, state.message.as_deref()), (ReportStatus::Failed, Some("exit status 1")));
    let group = rustix::process::Pid::from_raw(operator.log_line().await.parse().unwrap()).unwrap();
    until_nobody_is_left(group).await;
}

#[tokio::test]
async fn a_working_directory_that_is_not_there_is_named() {
    let (mut operator, _runtime) = exec().await;
    let spec = json!({"x-exec": {"command": ["pwd"], "workingDir": "/no/such/place"}});
    let state = ending(&mut operator, &spec).await;
    assert!(state.message.as_ref().unwrap().contains("/no/such/place"), "{state:?}");
}

#[tokio::test]
async fn a_flood_of_output_is_cut_and_its_size_told() {
    const WRITTEN: u64 = 20_000;
    let (mut operator, _runtime) = exec().await;
    let began = std::time::Instant::now();
    let state = ending(&mut operator, &json!({"x-exec": {"command": ["seq", WRITTEN]}})).await;
    assert_eq!(state.status, ReportStatus::Complete);
    let (mut sent, mut dropped) = (0, 0);
    while sent + dropped < WRITTEN {
        let line = operator.log_line().await;
        match line.split_once(" lines dropped: ") {
            Some((count, _)) => dropped += count.parse::<u64>().unwrap(),
            None => sent += 1,
        }
    }
    assert_eq!(sent + dropped, WRITTEN);
    let allowed = u64::from(LINES_BURST) + u64::from(LINES_PER_SECOND) * (began.elapsed().as_secs() + 1);
    assert!(sent <= allowed && dropped > 0, "{sent} lines were sent, {dropped} dropped");
}
