use super::*;
use crate::qemu::Programs;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use vm_agent_schemas::fleet::DriverName;

/// A recipe that makes a disk of a megabyte at once.
fn recipe(script: &'static str) -> Recipe {
    let files = vec![RecipeFile { path: "build.sh", content: script }, RecipeFile { path: "etc/unit", content: "x" }];
    Recipe { script: "build.sh", files }
}

const MAKES_A_DISK: &str = "test -f etc/unit && echo working >&2 && qemu-img create -q -f qcow2 $1/disk.qcow2 1M";

struct Ground {
    root: tempfile::TempDir,
    images: Images,
}

impl Ground {
    fn new(script: &'static str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let img = Programs::find().unwrap_or_else(|missing| panic!("{missing}")).img;
        let images = Images::new(root.path().join("images"), root.path().join("machines"), img, recipe(script));
        Self { root, images }
    }

    fn use_it(&self, machine: &str, image: &Digest) {
        let folder = self.root.path().join("machines").join(machine);
        fs::create_dir_all(&folder).unwrap();
        let machine = serde_json::json!({"name": machine, "image": image, "driver": DriverName::Qemu});
        fs::write(folder.join("machine.json"), machine.to_string()).unwrap();
    }

    /// What lies in the store besides images and their locks.
    fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.root.path().join("images")).unwrap().map(|it| it.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.starts_with('.') || name.ends_with(".part"));
        names
    }
}

/// Collects what is told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn listener(&self) -> impl Fn(Progress<'_>) + Send + Sync + '_ {
        |progress| self.0.lock().unwrap().push(format!("{progress:?}"))
    }

    fn has(&self, part: &str) -> bool {
        self.0.lock().unwrap().iter().any(|line| line.contains(part))
    }
}

/// How a server treats its nth connection.
#[derive(Clone, Copy)]
enum Serve {
    /// It sends what was asked for.
    Whole,
    /// It sends so many bytes of it and cuts the connection.
    Cut(usize),
    /// It takes no notice of what was asked for and sends all.
    FromTheBeginning,
    /// It refuses.
    NotFound,
}

/// A server of one file, and the ranges that it was asked for.
async fn server(content: Vec<u8>, manners: Vec<Serve>) -> (String, Arc<Mutex<Vec<Option<usize>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/disk.img", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let ranges = Arc::clone(&asked);
    tokio::spawn(async move {
        for manner in manners.into_iter().chain(std::iter::repeat(Serve::Whole)) {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap().to_ascii_lowercase();
            let range = request.split("range: bytes=").nth(1).map(|rest| rest.split('-').next().unwrap());
            let from: Option<usize> = range.map(|from| from.parse().unwrap());
            ranges.lock().unwrap().push(from);
            let from = from.filter(|_| !matches!(manner, Serve::FromTheBeginning)).unwrap_or(0);
            let (length, total) = (content.len() - from.min(content.len()), content.len());
            let head = match (manner, from) {
                (Serve::NotFound, _) => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n".to_owned(),
                (_, 0) => format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n"),
                (_, from) if from >= total => "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n".to_owned(),
                (_, from) => format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nContent-Range: bytes {from}-{}/{total}\r\n",
                    total - 1
                ),
            };
            let mut body = if matches!(manner, Serve::NotFound) { &[] } else { &content[from.min(total)..] };
            if let Serve::Cut(after) = manner {
                body = &body[..after.min(body.len())];
            }
            let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await;
            let _ = stream.write_all(body).await;
            let _ = stream.shutdown().await;
        }
    });
    (url, asked)
}

/// The content of a raw disk, large enough for more than one read.
fn a_disk() -> Vec<u8> {
    (0..1024 * 1024_u32).map(|at| (at % 251) as u8).collect()
}

fn reference(url: &str, content: &[u8]) -> ImageReference {
    format!("{url}#sha256={}", Digest::of(content)).parse().unwrap()
}

#[tokio::test]
async fn a_recipe_is_built_once_and_kept_read_only_by_its_content() {
    let ground = Ground::new(MAKES_A_DISK);
    let told = Told::default();
    let image = ground.images.obtain(&ImageReference::Recipe, &told.listener()).await.unwrap();
    assert!(told.has("working"));
    assert_eq!((image.info().disk_size, image.info().source.as_str()), (1024 * 1024, "debian"));
    assert_eq!(fs::metadata(image.disk()).unwrap().permissions().mode() & 0o777, 0o444);
    assert_eq!(image.kernel(), None);
    let silent = Told::default();
    ground.images.obtain(&ImageReference::Recipe, &silent.listener()).await.unwrap();
    assert!(silent.0.lock().unwrap().is_empty(), "nothing is done for what is here");
    assert_eq!(ground.images.list().await.unwrap(), [image.info().clone()]);
    assert_ne!(recipe("true").digest(), recipe(MAKES_A_DISK).digest());
    assert_eq!(ground.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_builders_at_once_make_one_image() {
    let ground = Ground::new(
        "test -e ../../../built && exit 1; touch ../../../built; sleep 0.3; qemu-img create -q -f qcow2 $1/disk.qcow2 1M",
    );
    let other = ground.images.clone();
    let (first, second) = tokio::join!(
        ground.images.obtain(&ImageReference::Recipe, &ignore_progress),
        other.obtain(&ImageReference::Recipe, &ignore_progress)
    );
    assert_eq!(first.unwrap().info(), second.unwrap().info());
}

#[tokio::test]
async fn a_recipe_that_fails_or_makes_nothing_is_told_and_leaves_nothing() {
    let ground = Ground::new("echo 'mmdebstrap is missing' >&2; exit 1");
    let error = ground.images.obtain(&ImageReference::Recipe, &ignore_progress).await.unwrap_err();
    let ImageError::Made { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.to_string(), "`build.sh` failed: mmdebstrap is missing");
    let nothing = Ground::new("true");
    let error = nothing.images.obtain(&ImageReference::Recipe, &ignore_progress).await.unwrap_err();
    assert_eq!(error.to_string(), "the recipe of image `debian` left no disk behind");
    for ground in [ground, nothing] {
        assert_eq!(ground.images.list().await.unwrap(), []);
        assert_eq!(ground.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_build_that_is_given_up_ends_with_all_that_it_started() {
    let ground = Ground::new("sleep 600 & echo $! > ../../../child; wait");
    let child = ground.root.path().join("images/child");
    let built = ground.images.obtain(&ImageReference::Recipe, &ignore_progress);
    let begun = async {
        loop {
            if let Ok(pid) = fs::read_to_string(&child).unwrap_or_default().trim().parse() {
                return rustix::process::Pid::from_raw(pid).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let pid = tokio::select! { _ = built => panic!("it sleeps"), pid = begun => pid };
    let gone = async {
        while fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).is_ok_and(|stat| !stat.contains(") Z")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("what the script started is killed");
    let anew = Ground { images: Images { recipe: Arc::new(recipe(MAKES_A_DISK)), ..ground.images.clone() }, ..ground };
    anew.images.obtain(&ImageReference::Recipe, &ignore_progress).await.unwrap();
}

#[tokio::test]
async fn a_download_goes_on_where_it_was_cut() {
    let ground = Ground::new("");
    let content = a_disk();
    let (url, asked) = server(content.clone(), vec![Serve::Cut(300_000), Serve::Cut(0), Serve::Cut(500_000)]).await;
    let told = Told::default();
    let image = ground.images.obtain(&reference(&url, &content), &told.listener()).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), [None, Some(300_000), Some(300_000), Some(800_000)]);
    assert_eq!((image.info().disk_size, image.info().source.as_str()), (content.len() as u64, url.as_str()));
    assert!(told.has("Downloaded { bytes: 1048576, of: Some(1048576) }") && told.has("Checks") && told.has("Converts"));
    assert_eq!(ground.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_download_goes_on_in_another_life() {
    let ground = Ground::new("");
    let content = a_disk();
    let wanted = reference("http://127.0.0.1:9/disk.img", &content);
    let error = ground.images.obtain(&wanted, &ignore_progress).await.unwrap_err().to_string();
    assert!(error.contains("what has come is kept"), "{error}");
    let (url, asked) = server(content.clone(), vec![]).await;
    let part = ground.root.path().join("images").join(format!("{}.part", Digest::of(&content)));
    fs::write(&part, &content[..1000]).unwrap();
    ground.images.obtain(&reference(&url, &content), &ignore_progress).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), [Some(1000)]);
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_sends_all_again() {
    let ground = Ground::new("");
    let content = a_disk();
    let (url, asked) = server(content.clone(), vec![Serve::Cut(1000), Serve::FromTheBeginning]).await;
    ground.images.obtain(&reference(&url, &content), &ignore_progress).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), [None, Some(1000)]);
}

#[tokio::test]
async fn what_is_another_than_its_checksum_is_refused_and_not_kept() {
    let ground = Ground::new("");
    let content = a_disk();
    let (url, asked) = server(b"something else".to_vec(), vec![]).await;
    for attempt in 1..=2 {
        let error = ground.images.obtain(&reference(&url, &content), &ignore_progress).await.unwrap_err();
        let ImageError::Download(cause) = &error else { panic!("{error}") };
        assert!(matches!(**cause, DownloadError::Changed { .. }), "{error}");
        assert_eq!(ground.leftovers(), Vec::<String>::new());
        assert_eq!(*asked.lock().unwrap(), vec![None; attempt], "nothing of the wrong one is gone on from");
    }
    assert_eq!(ground.images.list().await.unwrap(), []);
}

#[tokio::test]
async fn what_is_not_there_is_told_at_once() {
    let ground = Ground::new("");
    let (url, asked) = server(Vec::new(), vec![Serve::NotFound]).await;
    let error = ground.images.obtain(&reference(&url, b"x"), &ignore_progress).await.unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_file_of_this_host_is_taken_as_it_is_now() {
    let ground = Ground::new("");
    let disk = ground.root.path().join("my.img");
    fs::write(&disk, a_disk()).unwrap();
    let wanted: ImageReference = disk.to_str().unwrap().parse().unwrap();
    let first = ground.images.obtain(&wanted, &ignore_progress).await.unwrap();
    assert_eq!(*first.digest(), Digest::of(&a_disk()));
    let mut changed = a_disk();
    changed[0] = 7;
    fs::write(&disk, changed).unwrap();
    let second = ground.images.obtain(&wanted, &ignore_progress).await.unwrap();
    assert_ne!(first.digest(), second.digest());
    assert!(matches!(ground.images.remove(disk.to_str().unwrap()).await, Err(ImageError::Ambiguous { .. })));
}

#[tokio::test]
async fn an_image_that_lies_over_another_file_is_refused() {
    let ground = Ground::new("");
    let (base, disk) = (ground.root.path().join("base.img"), ground.root.path().join("disk.qcow2"));
    fs::write(&base, a_disk()).unwrap();
    let arguments = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.to_str().unwrap(), disk.to_str().unwrap()];
    tool::run(&ground.images.img, arguments).await.unwrap();
    let wanted: ImageReference = disk.to_str().unwrap().parse().unwrap();
    let error = ground.images.obtain(&wanted, &ignore_progress).await.unwrap_err().to_string();
    assert!(error.contains("base.img") && error.contains("qemu-img convert"), "{error}");
}

#[tokio::test]
async fn an_image_in_use_stays_and_says_by_whom() {
    let ground = Ground::new(MAKES_A_DISK);
    let image = ground.images.obtain(&ImageReference::Recipe, &ignore_progress).await.unwrap();
    let digest = image.digest().clone();
    assert!(matches!(ground.images.remove("debian").await, Err(ImageError::Busy)), "somebody takes it into use");
    drop(image);
    ground.use_it("web", &digest);
    ground.use_it("db", &Digest::of(b"another"));
    let error = ground.images.remove("debian").await.unwrap_err().to_string();
    assert!(error.contains("in use by `web`;"), "{error}");
    fs::remove_dir_all(ground.root.path().join("machines/web")).unwrap();
    assert_eq!(ground.images.remove(digest.short()).await.unwrap().digest, digest);
    assert!(matches!(ground.images.remove("debian").await, Err(ImageError::Unknown { .. })));
    assert!(matches!(ground.images.get(&digest).await, Err(ImageError::Missing { .. })));
    assert_eq!(ground.leftovers(), Vec::<String>::new());
}
