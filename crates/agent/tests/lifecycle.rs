//! How a proxy ends: by itself, when it is told to, and after its connections.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use leno_agent::lifecycle::{Draining, Order, Proxy, supervise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(60);

/// An admin interface that remembers what it was asked, and says how many connections there are.
struct Admin {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    /// How many there are, next; the last number stays.
    connections: Arc<Mutex<Vec<u64>>>,
    /// Counts what was asked.
    number: watch::Receiver<usize>,
}

impl Admin {
    async fn start() -> Admin {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let connections = Arc::new(Mutex::new(vec![0]));
        let (say, number) = watch::channel(0);
        let (all, numbers) = (Arc::clone(&asked), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a request"));
                }
                let head = String::from_utf8(head).expect("text");
                let line = head.lines().next().expect("a line").trim_end_matches(" HTTP/1.1").to_owned();
                let body = if line.starts_with("GET /stats") {
                    let mut numbers = numbers.lock().expect("a lock");
                    let number = if numbers.len() > 1 { numbers.remove(0) } else { numbers[0] };
                    format!("listener.0.0.0.0_15006.downstream_cx_active: {number}\n")
                } else {
                    "OK\n".to_owned()
                };
                all.lock().expect("a lock").push(line);
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.expect("it is sent");
                say.send_modify(|number| *number += 1);
            }
        });
        Admin { port, asked, connections, number }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("a lock").clone()
    }

    async fn until_asked(&mut self, number: usize) {
        let asked = self.number.wait_for(|asked| *asked >= number);
        tokio::time::timeout(LIMIT, asked).await.expect("in time").expect("it serves");
    }
}

/// A proxy that ends when it is killed, or by what is sent.
fn proxy() -> (Proxy, oneshot::Sender<Result<(), String>>, Arc<Mutex<bool>>) {
    let (end, ended) = oneshot::channel();
    let (kill, mut killed) = mpsc::channel::<()>(1);
    let was_killed = Arc::new(Mutex::new(false));
    let flag = Arc::clone(&was_killed);
    let exited = async move {
        tokio::select! {
            Ok(outcome) = ended => outcome,
            _ = killed.recv() => Ok(()),
        }
    };
    let kill = move || {
        *flag.lock().expect("a lock") = true;
        let _ = kill.try_send(());
    };
    (Proxy { exited: Box::pin(exited), kill: Some(Box::new(kill)) }, end, was_killed)
}

fn draining(until_idle: Option<Duration>) -> Draining {
    Draining { wait: Duration::from_millis(50), until_idle, inbound_only: true, own_ports: vec![15021] }
}

const DRAIN: &str = "POST /drain_listeners?graceful&inboundonly";
const COUNT: &str = "GET /stats?usedonly&filter=downstream_cx_active$";

/// Who waits this long before the end would not be waited for here.
const FOR_EVER: Draining = Draining {
    wait: Duration::from_secs(100_000),
    until_idle: None,
    inbound_only: true,
    own_ports: Vec::new(),
};

/// A proxy that runs beside the test.
fn runs(
    proxy: Proxy,
    orders: mpsc::Receiver<Order>,
    admin: &Admin,
    draining: Draining,
) -> JoinHandle<Result<(), String>> {
    let admin = ("127.0.0.1".to_owned(), admin.port);
    tokio::spawn(async move { supervise(proxy, orders, admin, &draining).await })
}

async fn end_of(running: JoinHandle<Result<(), String>>) -> Result<(), String> {
    tokio::time::timeout(LIMIT, running).await.expect("it ends in time").expect("it does not panic")
}

async fn ends(
    proxy: Proxy,
    orders: mpsc::Receiver<Order>,
    admin: &Admin,
    draining: Draining,
) -> Result<(), String> {
    end_of(runs(proxy, orders, admin, draining)).await
}

#[tokio::test]
async fn by_itself() {
    let admin = Admin::start().await;
    for outcome in [Ok(()), Err("exit status: 1".to_owned())] {
        let (proxy, end, _) = proxy();
        let (_order, orders) = mpsc::channel(1);
        end.send(outcome.clone()).expect("it is waited for");
        assert_eq!(ends(proxy, orders, &admin, draining(None)).await, outcome);
    }
    assert!(admin.asked().is_empty());
}

#[tokio::test]
async fn terminated() {
    let admin = Admin::start().await;
    let (proxy, _end, killed) = proxy();
    let (order, orders) = mpsc::channel(1);
    order.send(Order::Terminate).await.expect("it is taken");
    assert_eq!(ends(proxy, orders, &admin, draining(None)).await, Ok(()));
    assert!(*killed.lock().expect("a lock"));
    assert_eq!(admin.asked(), [DRAIN]);
}

#[tokio::test]
async fn when_nobody_is_connected_any_more() {
    let admin = Admin::start().await;
    *admin.connections.lock().expect("a lock") = vec![2, 0];
    let (proxy, _end, killed) = proxy();
    let (order, orders) = mpsc::channel(1);
    order.send(Order::Terminate).await.expect("it is taken");
    let draining = draining(Some(Duration::from_millis(10)));
    assert_eq!(ends(proxy, orders, &admin, draining).await, Ok(()));
    assert!(*killed.lock().expect("a lock"));
    assert_eq!(admin.asked(), [DRAIN, COUNT, COUNT]);
}

#[tokio::test]
async fn drained_before() {
    let mut admin = Admin::start().await;
    let (proxy, _end, killed) = proxy();
    let (order, orders) = mpsc::channel(1);
    let running = runs(proxy, orders, &admin, FOR_EVER);
    order.send(Order::Drain).await.expect("it is taken");
    admin.until_asked(1).await;
    assert!(!running.is_finished() && !*killed.lock().expect("a lock"), "it goes on");
    order.send(Order::Terminate).await.expect("it is taken");
    assert_eq!(end_of(running).await, Ok(()));
    assert!(*killed.lock().expect("a lock"));
    assert_eq!(admin.asked(), ["POST /drain_listeners?graceful&skip_exit&inboundonly"]);
}

#[tokio::test]
async fn told_to_quit_while_it_drains() {
    let mut admin = Admin::start().await;
    let (proxy, _end, killed) = proxy();
    let (order, orders) = mpsc::channel(1);
    let running = runs(proxy, orders, &admin, FOR_EVER);
    order.send(Order::Terminate).await.expect("it is taken");
    admin.until_asked(1).await;
    order.send(Order::Quit).await.expect("it is taken");
    assert_eq!(end_of(running).await, Ok(()));
    assert!(*killed.lock().expect("a lock"));
}

/// Our own proxy has nobody who could kill it: its admin interface ends it.
#[tokio::test]
async fn by_its_admin_interface() {
    let mut admin = Admin::start().await;
    let (order, orders) = mpsc::channel(1);
    order.send(Order::Quit).await.expect("it is taken");
    let (end, ended) = oneshot::channel();
    let exited = async move { ended.await.unwrap_or_else(|_| Err("gone".to_owned())) };
    let proxy = Proxy { exited: Box::pin(exited), kill: None };
    let running = runs(proxy, orders, &admin, draining(None));
    admin.until_asked(1).await;
    end.send(Ok(())).expect("it is waited for");
    assert_eq!(end_of(running).await, Ok(()));
    assert_eq!(admin.asked(), ["POST /quitquitquit"]);
}
