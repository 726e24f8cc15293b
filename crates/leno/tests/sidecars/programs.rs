//! Programs of all kinds, none of which knows of the mesh.

use std::process::Command;

use super::net::{has, v4};
use super::scene::{CLIENT, SERVER, STOCK, Scene, by_both};

const SERVER_URL: &str = "http://server/hello";

pub(crate) fn curl(scene: &Scene) {
    let head = scene.client().curl(&["-f", SERVER_URL]).text;
    assert!(by_both(&head, "client") && head.contains("GET /hello HTTP/1.1"), "{head}");
    let long = scene.client().curl(&["-f", "http://server.default.svc.cluster.local/"]).text;
    assert!(by_both(&long, "client"), "{long}");
    // What it says of itself is not believed.
    let forged =
        ["-f", "-H", "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/root", SERVER_URL];
    let forged = scene.client().curl(&forged).text;
    assert!(by_both(&forged, "client") && !forged.contains("sa/root"), "{forged}");
    // A client of HTTP/2, and a server that knows HTTP/1 only.
    let http2 = scene.client().curl(&["-f", "--http2-prior-knowledge", SERVER_URL]).text;
    assert!(by_both(&http2, "client") && http2.contains("GET /hello HTTP/1.1"), "{http2}");
    // Larger than what buffers hold.
    let body = "x".repeat(3 << 20);
    let said = scene.client().fed(
        "curl",
        &["-sS", "-f", "--max-time", "50", "--data-binary", "@-", SERVER_URL],
        body.as_bytes(),
    );
    assert!(said.text.contains(&format!("body {}\n", body.len())), "{said:?}");
}

pub(crate) fn wget(scene: &Scene) {
    if !has("wget") {
        return println!("skipped: wget through sidecars: it is not installed");
    }
    let said = scene.client().run("wget", &["-q", "-T", "50", "-O", "-", SERVER_URL]);
    assert!(by_both(&said.text, "client") && said.text.contains("user-agent: Wget"), "{said:?}");
}

/// Half a connection may be closed: netcat says that it has said everything, and is answered then.
pub(crate) fn netcat(scene: &Scene) {
    if !has("nc") {
        return println!("skipped: netcat through sidecars: it is not installed");
    }
    for server in scene.servers() {
        let ask = || scene.client().fed("nc", &["-N", "-w", "50", server, "7000"], b"hello\n");
        scene.told("netcat", ask, |text| text == "6 bytes from 127.0.0.6\n");
    }
}

const PYTHON: &str = r#"
import http.client, socket, urllib.request
connection = http.client.HTTPConnection("server", 80, timeout=50)
for number in range(3):
    connection.request("POST", "/%d" % number, body=iter([b"12", b"345"]), headers={"Transfer-Encoding": "chunked"}, encode_chunked=True)
    text = connection.getresponse().read().decode()
    assert "body 5" in text and "POST /%d HTTP/1.1" % number in text, text
    print(text)
with urllib.request.urlopen("http://server.default/by-url", timeout=50) as answer:
    text = answer.read().decode()
    assert "GET /by-url" in text, text
with socket.create_connection(("server", 7000), 50) as stream:
    stream.sendall(b"12345")
    stream.shutdown(socket.SHUT_WR)
    said = stream.makefile().read()
    assert said == "5 bytes from 127.0.0.6\n", said
"#;

pub(crate) fn python(scene: &Scene) {
    let ask = || scene.python(CLIENT, PYTHON, &[]);
    scene.told("python", ask, |text| text.matches("sa/client").count() == 3 && by_both(text, "client"));
}

/// What a program in C does: asks for addresses, and tries one after the other.
const C: &str = r#"
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>

int main(int count, char **words) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *all;
    if (count < 3 || getaddrinfo(words[1], words[2], &hints, &all)) return 2;
    for (struct addrinfo *one = all; one; one = one->ai_next) {
        int stream = socket(one->ai_family, one->ai_socktype, one->ai_protocol);
        if (stream < 0 || connect(stream, one->ai_addr, one->ai_addrlen)) { close(stream); continue; }
        const char *request = "GET /from-c HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n";
        write(stream, request, strlen(request));
        char buffer[4096];
        ssize_t length;
        while ((length = read(stream, buffer, sizeof buffer)) > 0) fwrite(buffer, 1, length, stdout);
        return 0;
    }
    return 3;
}
"#;

pub(crate) fn c(scene: &Scene) {
    if !has("gcc") {
        return println!("skipped: a C program through sidecars: there is no gcc");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (source, program) = (folder.path().join("client.c"), folder.path().join("client"));
    std::fs::write(&source, C).expect("writable");
    let built = Command::new("gcc").arg("-o").args([&program, &source]).output().expect("it runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = scene.client().run(&program.display().to_string(), &["server", "80"]);
    let body = said.text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    assert!(by_both(body, "client") && body.contains("GET /from-c"), "{said:?}");
}

/// Go asks for names by itself, and for both families at a time.
const GO: &str = r#"package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	client := http.Client{Timeout: 50 * time.Second}
	for number := 0; number < 3; number++ {
		answer, err := client.Get(os.Args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		text, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		os.Stdout.Write(text)
	}
}
"#;

pub(crate) fn go(scene: &Scene) {
    if !has("go") {
        return println!("skipped: a Go program through sidecars: there is no go");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (source, program) = (folder.path().join("main.go"), folder.path().join("client"));
    std::fs::write(&source, GO).expect("writable");
    let mut build = Command::new("go");
    build.args(["build", "-o"]).args([&program, &source]).current_dir(folder.path());
    // By its own resolver.
    build.env("CGO_ENABLED", "0").env("GO111MODULE", "off").env("GOTOOLCHAIN", "local");
    let built = build.output().expect("it runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = scene.client().run(&program.display().to_string(), &["http://server/from-go"]);
    assert!(by_both(&said.text, "client"), "{said:?}");
    assert_eq!(said.text.matches("GET /from-go").count(), 3, "{said:?}");
}

/// None of many is lost, over connections old and new.
pub(crate) fn many(scene: &Scene) {
    for server in scene.servers() {
        let urls = vec![format!("http://{server}/"); 50];
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        for more in [&["-f"][..], &["-f", "-H", "connection: close"]] {
            let said = scene.client().curl(&[more, &urls].concat());
            assert_eq!(said.text.matches("sa/client").count(), 50, "{said:?}");
            assert_eq!(said.text.matches("from 127.0.0.6\n").count(), 50, "{said:?}");
        }
    }
    // From the real Envoy to ours, and to itself.
    for host in ["server", "six", "stock"].into_iter().filter(|_| scene.pods.contains(&STOCK)) {
        let said = scene.net[STOCK].curl(&["-f", &format!("http://{host}/")]).text;
        assert!(by_both(&said, "stock"), "{said}");
    }
    // The address of a pod behind a service is no address of the mesh's: plain text, which is refused.
    let said = scene.client().curl(&["-f", &format!("http://{}:8080/", v4(SERVER))]);
    assert_ne!(said.code, 0, "{said:?}");
}
