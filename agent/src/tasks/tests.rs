use tokio::process::Command;
use vm_agent_schemas::wire::Channel;

use super::*;

#[tokio::test]
async fn an_attempt_that_breaks_off_has_failed_and_nothing_of_it_is_left() {
    let place = tempfile::tempdir().unwrap();
    let task = TaskRef { task: TaskId::generate(), attempt: 1 };
    let output = Arc::new(Output::new(output_folder(place.path(), task), 1024));
    let mut process =
        Command::new("sleep").arg("1000").env(TASK_VARIABLE, task.task.to_string()).kill_on_drop(true).spawn().unwrap();
    let broken = async {
        output.push(Channel::Stdout, "said".into()).await;
        panic!("an attempt breaks off, as it should here")
    };
    let end = outlived(task, &output, broken).await.unwrap();
    let TaskOutcome::Failed { reason } = &end.outcome else { panic!("{}", end.outcome) };
    assert!(reason.starts_with("a defect of the runtime broke it off"), "{reason}");
    assert_eq!((end.task, end.report.stdout), (task, 4));
    assert!(!process.wait().await.unwrap().success(), "its processes are killed");
    assert!(outlived(task, &output, async { None }).await.is_none(), "a runtime that goes down ends nothing");
}
