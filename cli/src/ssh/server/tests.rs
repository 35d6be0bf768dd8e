use futures::FutureExt as _;
use futures::future::pending;
use russh::client::{self, Handle};
use russh::keys::PublicKeyOrCertificate;
use russh::{ChannelMsg, Error};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};

use super::*;
use crate::ssh::identity;

/// A machine whose shell knows a few words. What it is asked for it tells, and what is let go of before its end.
struct Fake {
    asked: mpsc::UnboundedSender<Told>,
}

#[derive(Debug, PartialEq)]
enum Told {
    Asked(StreamTarget),
    Dropped,
}

/// How much the pipe between client and server holds: more than the windows of a channel, because the client of this
/// library does not read while it waits to write, as the server does not. Clients that people use do.
const PIPE: usize = 8 * 1024 * 1024;

/// Tells that it was dropped.
struct Guard(mpsc::UnboundedSender<Told>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send(Told::Dropped);
    }
}

impl Machine for Fake {
    fn carry(&self, target: StreamTarget, near: NearEnd) -> BoxFuture<'static, Result<TaskOutcome, CommandError>> {
        let asked = self.asked.clone();
        asked.send(Told::Asked(target.clone())).unwrap();
        async move {
            match &target {
                StreamTarget::Connect { port: 1, .. } => Ok(TaskOutcome::Failed { reason: "nobody listens".into() }),
                StreamTarget::Connect { .. } => echo(near).await,
                StreamTarget::Run { run } => obey(&run.argv[2], run, near, asked).await,
                StreamTarget::Terminal { run, .. } => {
                    obey(run.argv.get(2).map_or("sizes", String::as_str), run, near, asked).await
                }
                _ => panic!("no client can ask for {target:?}"),
            }
        }
        .boxed()
    }
}

/// Begins, and sends back what comes, to its end.
async fn echo(mut near: NearEnd) -> Result<TaskOutcome, CommandError> {
    // Of a process nobody wants to know.
    let _ = near.opened.send(());
    copy(&mut near.stdin, &mut near.stdout).await?;
    near.stdout.shutdown().await?;
    Ok(TaskOutcome::Exited { code: 0 })
}

async fn obey(
    word: &str,
    run: &Run,
    mut near: NearEnd,
    told: mpsc::UnboundedSender<Told>,
) -> Result<TaskOutcome, CommandError> {
    match word {
        "speak" => {
            near.stdout.write_all(b"out").await?;
            near.stdout.shutdown().await?;
            near.stderr.write_all(b"err").await?;
            Ok(TaskOutcome::Exited { code: 7 })
        }
        "cat" => echo(near).await,
        "env" => {
            near.stdout.write_all(format!("{:?}", run.env).as_bytes()).await?;
            Ok(TaskOutcome::Exited { code: 0 })
        }
        "sizes" => {
            while let Some(Control::Resize(TerminalSize { cols, rows })) = near.controls.recv().await {
                near.stdout.write_all(format!("{cols}x{rows}").as_bytes()).await?;
            }
            panic!("the client wants something else")
        }
        "signal" => match near.controls.recv().await {
            Some(Control::Signal(Signal::Term)) => Ok(TaskOutcome::Signaled { signal: 15 }),
            other => panic!("the client wants something else: {other:?}"),
        },
        "forever" => {
            let _guard = Guard(told);
            pending().await
        }
        "lost" => Err(CommandError::new(Exit::UNREACHABLE, "the connection broke off")),
        other => panic!("nobody knows `{other}`"),
    }
}

struct Trusting;

impl client::Handler for Trusting {
    type Error = Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Error> {
        Ok(true)
    }
}

/// A client of a server before a fake machine, and what that tells.
async fn client() -> (Handle<Trusting>, mpsc::UnboundedReceiver<Told>) {
    let dir = tempfile::tempdir().unwrap();
    let key = identity::load(dir.path()).unwrap();
    let (asked, told) = mpsc::unbounded_channel();
    let (near, far) = tokio::io::duplex(PIPE);
    tokio::spawn(serve(far, key, Arc::new(Fake { asked })));
    let mut client = client::connect_stream(Arc::default(), near, Trusting).await.unwrap();
    assert!(client.authenticate_none("agent").await.unwrap().success());
    (client, told)
}

type ClientChannel = russh::Channel<client::Msg>;

async fn run(client: &Handle<Trusting>, line: &str) -> ClientChannel {
    let channel = client.channel_open_session().await.unwrap();
    channel.exec(true, line).await.unwrap();
    channel
}

/// What a process wrote to stdout and stderr, and its exit code, once its channel is closed.
async fn end_of(mut channel: ClientChannel) -> (String, String, Option<u32>) {
    let (mut stdout, mut stderr, mut code) = (String::new(), String::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => stdout.push_str(std::str::from_utf8(&data).unwrap()),
            ChannelMsg::ExtendedData { data, ext: STDERR } => stderr.push_str(std::str::from_utf8(&data).unwrap()),
            ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
            _ => {}
        }
    }
    (stdout, stderr, code)
}

/// Reads so much of a process's output.
async fn read(channel: &mut ClientChannel, count: usize) -> String {
    let mut text = vec![0; count];
    channel.make_reader().read_exact(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_command_gives_its_output_its_other_output_and_its_exit_code() {
    let (client, mut told) = client().await;
    let ended = end_of(run(&client, "speak").await).await;
    assert_eq!(ended, ("out".to_owned(), "err".to_owned(), Some(7)));
    let argv = ["/bin/sh", "-c", "speak"].map(str::to_owned).to_vec();
    let target = StreamTarget::Run { run: Run { argv, ..Run::default() } };
    assert_eq!(told.recv().await.unwrap(), Told::Asked(target));
}

#[tokio::test]
async fn a_command_that_was_lost_or_killed_says_so() {
    let (client, _told) = client().await;
    let (_, sentence, code) = end_of(run(&client, "lost").await).await;
    assert_eq!((sentence.as_str(), code), ("vm-agent: the connection broke off\r\n", Some(255)));
    let channel = run(&client, "signal").await;
    channel.signal(Sig::TERM).await.unwrap();
    assert_eq!(end_of(channel).await.2, Some(143));
}

#[tokio::test]
async fn input_goes_in_up_to_its_end() {
    let (client, _told) = client().await;
    let channel = run(&client, "cat").await;
    channel.data_bytes("hello").await.unwrap();
    channel.eof().await.unwrap();
    assert_eq!(end_of(channel).await, ("hello".to_owned(), String::new(), Some(0)));
}

#[tokio::test]
async fn more_goes_both_ways_than_fits_anywhere() {
    let (client, _told) = client().await;
    let (mut read, write) = run(&client, "cat").await.split();
    let sent = PIECES * 32 * 1024;
    let sending = async {
        for _ in 0..PIECES {
            write.data_bytes(vec![b'x'; 32 * 1024]).await.unwrap();
        }
        write.eof().await.unwrap();
    };
    let receiving = async {
        let mut received = 0;
        while let Some(message) = read.wait().await {
            if let ChannelMsg::Data { data } = message {
                received += data.len();
            }
        }
        received
    };
    assert_eq!(tokio::join!(sending, receiving).1, sent);
}

/// Beyond what is read ahead of a process, in pieces of 32 KiB.
const PIECES: usize = 24 * 32;

#[tokio::test]
async fn variables_are_those_of_the_command() {
    let (client, _told) = client().await;
    let channel = client.channel_open_session().await.unwrap();
    channel.set_env(true, "LANG", "C.UTF-8").await.unwrap();
    channel.set_env(true, "A=B", "x").await.unwrap();
    channel.exec(true, "env").await.unwrap();
    assert_eq!(end_of(channel).await.0, r#"{"LANG": "C.UTF-8"}"#);
}

#[tokio::test]
async fn a_terminal_has_the_size_of_the_clients() {
    let (client, mut told) = client().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 100, 40, 0, 0, &[]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    channel.window_change(120, 50, 0, 0).await.unwrap();
    assert_eq!(read(&mut channel, 6).await, "120x50");
    let env = [("TERM".to_owned(), "xterm".to_owned())].into();
    let run = Run { env, ..Run::default() };
    let target = StreamTarget::Terminal { run, size: TerminalSize { cols: 100, rows: 40 }, keep: None };
    assert_eq!(told.recv().await.unwrap(), Told::Asked(target));
}

#[tokio::test]
async fn channels_go_side_by_side() {
    let (client, _told) = client().await;
    let mut first = run(&client, "cat").await;
    let mut second = run(&client, "cat").await;
    second.data_bytes("two").await.unwrap();
    assert_eq!(read(&mut second, 3).await, "two");
    first.data_bytes("one").await.unwrap();
    assert_eq!(read(&mut first, 3).await, "one");
    assert_eq!(end_of(run(&client, "speak").await).await.2, Some(7));
}

#[tokio::test]
async fn a_client_that_closes_its_channel_ends_the_process() {
    let (client, mut told) = client().await;
    let channel = run(&client, "forever").await;
    assert!(matches!(told.recv().await.unwrap(), Told::Asked(_)));
    channel.close().await.unwrap();
    assert_eq!(told.recv().await.unwrap(), Told::Dropped);
}

#[tokio::test]
async fn a_client_that_is_gone_ends_its_processes() {
    let (client, mut told) = client().await;
    let _channel = run(&client, "forever").await;
    assert!(matches!(told.recv().await.unwrap(), Told::Asked(_)));
    client.disconnect(russh::Disconnect::ByApplication, "", "en").await.unwrap();
    assert_eq!(told.recv().await.unwrap(), Told::Dropped);
}

#[tokio::test]
async fn a_connection_goes_to_a_port_and_ends_each_way_by_itself() {
    let (client, mut told) = client().await;
    let channel = client.channel_open_direct_tcpip("db.internal", 5432, "127.0.0.1", 1).await.unwrap();
    let target = StreamTarget::Connect { host: "db.internal".to_owned(), port: 5432 };
    assert_eq!(told.recv().await.unwrap(), Told::Asked(target));
    channel.data_bytes("hello").await.unwrap();
    channel.eof().await.unwrap();
    // No exit code: it is no process.
    assert_eq!(end_of(channel).await, ("hello".to_owned(), String::new(), None));
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_refused() {
    let (client, _told) = client().await;
    let refused = client.channel_open_direct_tcpip("127.0.0.1", 1, "127.0.0.1", 1).await.unwrap_err();
    assert!(matches!(&refused, Error::ChannelOpenFailure(_)), "{refused:?}");
    assert_eq!(end_of(run(&client, "speak").await).await.2, Some(7));
}

#[tokio::test]
async fn what_is_not_served_is_refused_and_the_rest_goes_on() {
    let (client, _told) = client().await;
    client.tcpip_forward("127.0.0.1", 0).await.unwrap_err();
    let mut channel = client.channel_open_session().await.unwrap();
    channel.agent_forward(true).await.unwrap();
    assert!(matches!(channel.wait().await, Some(ChannelMsg::Failure)));
    channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
    assert!(matches!(channel.wait().await, Some(ChannelMsg::Failure)));
    channel.request_subsystem(true, "netconf").await.unwrap();
    assert!(matches!(channel.wait().await, Some(ChannelMsg::Failure)));
    channel.exec(true, "speak").await.unwrap();
    assert_eq!(end_of(channel).await.2, Some(7));
}
