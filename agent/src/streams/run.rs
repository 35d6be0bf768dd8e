//! A process with pipes. It lives no longer than its stream.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vm_agent_schemas::wire::TaskOutcome;

use super::wire::{Order, Wire};
use crate::process::{Drain, Leader, Process};

/// How long the processes of a stream may take to end once nobody listens any more.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Serves a stream by a process.
pub(super) async fn serve(process: Process, wire: Wire) -> TaskOutcome {
    let Process { leader, stdin, stdout, stderr } = process;
    let ended = CancellationToken::new();
    let stdout = wire.stdout.pump(Drain::new(stdout, ended.clone()));
    let stderr = wire.stderr.pump(Drain::new(stderr, ended.clone()));
    let output = async {
        // Without a session there is nobody to send to.
        let _ = tokio::join!(stdout, stderr);
    };
    let input = async {
        if let (Some(mut inlet), Some(mut pipe)) = (wire.stdin, stdin) {
            inlet.feed(&mut pipe).await;
        }
    };
    let process = supervise(leader, wire.orders, &ended, output);
    tokio::join!(ended.run_until_cancelled(input), process).1
}

/// Waits until the process has ended and its output is sent, and obeys orders meanwhile. Once nobody
/// listens any more (the stream is closed, or the session lost) the process is ended.
async fn supervise(
    mut leader: Leader,
    mut orders: mpsc::UnboundedReceiver<Order>,
    ended: &CancellationToken,
    output: impl Future<Output = ()>,
) -> TaskOutcome {
    let mut outcome = None;
    {
        let mut output = std::pin::pin!(output);
        let mut sent = false;
        loop {
            tokio::select! {
                () = &mut output, if !sent => sent = true,
                how = leader.wait(), if outcome.is_none() => {
                    outcome = Some(how);
                    ended.cancel();
                }
                order = orders.recv() => match order {
                    Some(Order::Signal(signal)) => leader.signal(signal),
                    // A pipe has no size.
                    Some(Order::Resize(_)) => {}
                    Some(Order::Close) | None => break,
                },
            }
            if sent && let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
    let closed = leader.end(CLOSE_GRACE).await;
    ended.cancel();
    outcome.unwrap_or(closed)
}
