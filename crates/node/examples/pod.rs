//! Runs a command in a pod, for trials by hand. Without a command it only says what this machine allows.
//!
//! ```text
//! cargo run -p leno-node --example pod -- sh -c 'ip address; nft list ruleset; cat /proc/self/status'
//! ```

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("only Linux has namespaces");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::error::Error;

    use leno_node::{
        InnerSpec, Mode, Network, Node, Outer, Pod, PodSpec, Process, ProcessSpec, Redirect, Support, support,
    };
    use tokio::sync::mpsc;

    pub(crate) fn main() -> Result<(), Box<dyn Error>> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let node = if Node::is_inner() { Some(Node::enter(Network::default())?) } else { None };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            match node {
                Some(node) => inner(&node, arguments).await,
                None => outer(arguments).await,
            }
        })
    }

    async fn outer(arguments: Vec<String>) -> Result<(), Box<dyn Error>> {
        let support = support();
        println!("{support:?}");
        let Support::Namespaces(mode) = support else { return Ok(()) };
        if arguments.is_empty() {
            return Ok(());
        }
        let argv = std::env::args_os().collect();
        let mut outer = Outer::start(InnerSpec { mode, argv, environment: Vec::new() }).await?;
        println!("node: {}", outer.wait().await?);
        Ok(())
    }

    async fn inner(node: &Node, argv: Vec<String>) -> Result<(), Box<dyn Error>> {
        let address = [10, 244, 0, 2].into();
        let pod =
            Pod::create(node, &PodSpec { name: "trial".into(), address, hosts: None, resolv_conf: None })?;
        let redirect = match node.mode() {
            Mode::Root => Redirect::default(),
            Mode::User => Redirect::by_mark(),
        };
        pod.redirect(&redirect)?;
        let (sender, mut lines) = mpsc::channel(64);
        let spec = ProcessSpec { name: "trial".into(), argv, ..ProcessSpec::default() };
        let process = Process::spawn(Some(&pod), &spec, &sender).await?;
        drop(sender);
        while let Some(line) = lines.recv().await {
            println!("{:?}: {}", line.stream, line.text);
        }
        println!("process: {}", process.wait().await);
        Ok(())
    }
}
