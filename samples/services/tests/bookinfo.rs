//! Bookinfo as its callers see it: whole, with parts missing, signed in, and behind a proxy.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use expect_test::{Expect, expect};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use leno_samples::{OutboundProxy, Peer, Shutdown};
use support::{
    Nobody, Running, get, send, show, start_details, start_productpage, start_ratings, start_reviews,
};
use tokio::net::TcpListener;

async fn check(service: &Running, path: &str, expected: Expect) {
    expected.assert_eq(&show(&get(service.url(path), &[]).await));
}

#[tokio::test]
async fn details_answers() {
    let details = start_details().await;
    check(&details, "/details/0", expect![[r#"200 {"id":0,"author":"William Shakespeare","year":1600,"type":"paperback","pages":64,"publisher":"Thomas Fisher","language":"English","ISBN-10":"0000000000","ISBN-13":"000-0000000000"}"#]]).await;
    check(&details, "/details/x", expect![[r#"400 {"error":"a product is named by its number, like 0"}"#]])
        .await;
    check(&details, "/health", expect![[r#"200 {"status":"details is healthy","version":"v1"}"#]]).await;
    check(&details, "/", expect![[r#"404 {"error":"no such page"}"#]]).await;
    let posted = send(Request::post(details.url("/details/0")).body(String::new()).unwrap()).await;
    assert_eq!((posted.status().as_u16(), &posted.headers()["allow"]), (405, &"GET, HEAD".parse().unwrap()));
}

#[tokio::test]
async fn ratings_answers() {
    let ratings = start_ratings().await;
    check(&ratings, "/ratings/7", expect![[r#"200 {"id":7,"ratings":{"Reviewer1":5,"Reviewer2":4}}"#]]).await;
    check(&ratings, "/ratings/-1", expect![[r#"400 {"error":"a product is named by its number, like 0"}"#]])
        .await;
    check(&ratings, "/health", expect![[r#"200 {"status":"ratings is healthy","version":"v1"}"#]]).await;
}

/// Who reviewed, and with which rating.
async fn ratings_in(reviews: &Running) -> String {
    let answer: serde_json::Value =
        serde_json::from_str(get(reviews.url("/reviews/0"), &[]).await.body()).unwrap();
    assert_eq!(answer["id"], "0");
    assert_eq!(answer["podname"], "reviews-v9-abc");
    assert!(answer["clustername"].is_null());
    let entries = answer["reviews"].as_array().unwrap().iter();
    entries.map(|entry| format!("{} {}\n", entry["reviewer"], entry["rating"])).collect()
}

#[tokio::test]
async fn reviews_come_with_the_stars_that_the_version_has() {
    let (ratings, away) = (start_ratings().await, Nobody::here());
    expect![[r#"
        "Reviewer1" null
        "Reviewer2" null
    "#]]
    .assert_eq(&ratings_in(&start_reviews(None).await).await);
    expect![[r#"
        "Reviewer1" {"stars":5,"color":"red"}
        "Reviewer2" {"stars":4,"color":"red"}
    "#]]
    .assert_eq(&ratings_in(&start_reviews(Some((ratings.peer(), "red"))).await).await);
    expect![[r#"
        "Reviewer1" {"error":"The ratings service does not answer"}
        "Reviewer2" {"error":"The ratings service does not answer"}
    "#]]
    .assert_eq(&ratings_in(&start_reviews(Some((away.peer.clone(), "red"))).await).await);
}

#[tokio::test]
async fn the_page_shows_all_parts() {
    let (details, ratings) = (start_details().await, start_ratings().await);
    let reviews = start_reviews(Some((ratings.peer(), "red"))).await;
    let page =
        start_productpage(details.peer(), reviews.peer(), ratings.peer(), OutboundProxy::default()).await;
    let shown = get(page.url("/productpage"), &[]).await;
    assert_eq!(shown.status(), StatusCode::OK);
    assert_eq!(shown.headers()["content-type"], "text/html; charset=utf-8");
    for part in [
        "<title>Bookinfo: A Midsummer Night&#39;s Dream</title>",
        "<dt>Publisher</dt><dd>Thomas Fisher</dd>",
        "<code>reviews-v9-abc</code>",
        "style=\"color: red\" role=\"img\" aria-label=\"5 of 5 stars\">★★★★★<",
        "aria-label=\"4 of 5 stars\">★★★★☆<",
        "action=\"/login\"",
    ] {
        assert!(shown.body().contains(part), "{part} is missing in\n{}", shown.body());
    }
    assert!(!shown.body().contains("could not be fetched"));

    let style = get(page.url("/static/bookinfo.css"), &[]).await;
    assert_eq!(
        (style.status(), &style.headers()["content-type"]),
        (StatusCode::OK, &"text/css; charset=utf-8".parse().unwrap())
    );
    let index = get(page.url("/"), &[]).await;
    assert!(index.status() == StatusCode::OK && index.body().contains(&details.peer().to_string()));
    check(&page, "/health", expect![[r#"200 {"status":"productpage is healthy","version":"v1"}"#]]).await;
    check(&page, "/elsewhere", expect![[r#"404 {"error":"no such page"}"#]]).await;
}

#[tokio::test]
async fn the_page_is_served_without_the_parts_that_are_away() {
    let away = Nobody::here();
    let nobody = &away.peer;
    let page =
        start_productpage(nobody.clone(), nobody.clone(), nobody.clone(), OutboundProxy::default()).await;
    let shown = get(page.url("/productpage"), &[]).await;
    assert_eq!(shown.status(), StatusCode::OK);
    assert!(shown.body().contains("Product details could not be fetched!"), "{}", shown.body());
    assert!(shown.body().contains("Product reviews could not be fetched!"), "{}", shown.body());

    for path in ["/api/v1/products/0", "/api/v1/products/0/reviews", "/api/v1/products/0/ratings"] {
        assert_eq!(get(page.url(path), &[]).await.status(), StatusCode::BAD_GATEWAY, "{path}");
    }
}

#[tokio::test]
async fn the_api_hands_on_the_answers() {
    let (details, ratings) = (start_details().await, start_ratings().await);
    let reviews = start_reviews(None).await;
    let page =
        start_productpage(details.peer(), reviews.peer(), ratings.peer(), OutboundProxy::default()).await;
    let products = get(page.url("/api/v1/products"), &[]).await;
    let products: serde_json::Value = serde_json::from_str(products.body()).unwrap();
    assert_eq!((&products[0]["id"], products.as_array().unwrap().len()), (&0.into(), 1));
    for (path, origin) in [
        ("/api/v1/products/3", details.url("/details/3")),
        ("/api/v1/products/3/reviews", reviews.url("/reviews/3")),
        ("/api/v1/products/3/ratings", ratings.url("/ratings/3")),
    ] {
        assert_eq!(show(&get(page.url(path), &[]).await), show(&get(origin, &[]).await), "{path}");
    }
    check(
        &page,
        "/api/v1/products/x",
        expect![[r#"400 {"error":"a product is named by its number, like 0"}"#]],
    )
    .await;
    check(&page, "/api/v1/products/0/prices", expect![[r#"404 {"error":"no such page"}"#]]).await;
}

#[tokio::test]
async fn signing_in_and_out() {
    let away = Nobody::here();
    let nobody = &away.peer;
    let page =
        start_productpage(nobody.clone(), nobody.clone(), nobody.clone(), OutboundProxy::default()).await;
    let sign_in = async |form: &str| {
        let request =
            Request::post(page.url("/login")).header("content-type", "application/x-www-form-urlencoded");
        send(request.body(form.to_owned()).unwrap()).await
    };
    let done = sign_in("username=jason&passwd=").await;
    assert_eq!(
        (done.status().as_u16(), &done.headers()["location"]),
        (303, &"/productpage".parse().unwrap())
    );
    let cookie = done.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap();
    let shown = get(page.url("/productpage"), &[("cookie", cookie)]).await;
    assert!(shown.body().contains("Signed in as <b>jason</b>"), "{}", shown.body());

    for form in ["", "username=", "username=%3Cb%3E", "name=jason", &"x".repeat(10_000)] {
        let refused = sign_in(form).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{form}");
        assert!(!refused.headers().contains_key("set-cookie"), "{form}");
    }
    let out = get(page.url("/logout"), &[("cookie", cookie)]).await;
    assert!(out.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
}

/// A server that notes each request line with the headers asked for, and answers with `body`.
async fn recorder(names: &'static [&'static str], body: &'static str) -> (Running, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let running = Running::start(|listener, shutdown| record(listener, shutdown, names, body, log)).await;
    (running, seen)
}

async fn record(
    listener: TcpListener,
    shutdown: Shutdown,
    names: &'static [&'static str],
    body: &'static str,
    seen: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let end = shutdown.requested();
    tokio::pin!(end);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            () = &mut end => return Ok(()),
        };
        let seen = Arc::clone(&seen);
        let service = service_fn(move |request: Request<Incoming>| {
            let mut line = request.uri().to_string();
            for name in names {
                let value = request.headers().get(*name).map_or("-", |value| value.to_str().unwrap());
                line.push_str(&format!(" {name}={value}"));
            }
            seen.lock().unwrap().push(line);
            async move { Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(body)))) }
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}

#[tokio::test]
async fn requests_go_to_the_proxy_in_absolute_form() {
    let (proxy, seen) = recorder(&["host"], r#"{"id":0,"ratings":{"Reviewer1":1}}"#).await;
    let outbound = |no_proxy| OutboundProxy::new(Some(&proxy.url("")), no_proxy).unwrap();
    let ratings = Peer::new("ratings", "shop", 9080).unwrap();
    let page = start_productpage(ratings.clone(), ratings.clone(), ratings.clone(), outbound(None)).await;
    check(&page, "/api/v1/products/0/ratings", expect![[r#"200 {"id":0,"ratings":{"Reviewer1":1}}"#]]).await;
    expect![[r#"
        [
            "http://ratings.shop:9080/ratings/0 host=ratings.shop:9080",
        ]
    "#]]
    .assert_debug_eq(&std::mem::take(&mut *seen.lock().unwrap()));

    // An exempt peer is called straight, in origin form.
    let exempt = Some("127.0.0.0/8");
    let straight = start_productpage(proxy.peer(), proxy.peer(), proxy.peer(), outbound(exempt)).await;
    get(straight.url("/api/v1/products/4/ratings"), &[]).await;
    assert_eq!(*seen.lock().unwrap(), [format!("/ratings/4 host={}", proxy.address)]);
}

#[tokio::test]
async fn trace_and_user_headers_travel_to_the_end() {
    let names = &["x-request-id", "traceparent", "x-b3-traceid", "end-user", "user-agent", "x-private"];
    let (ratings, seen) = recorder(names, r#"{"id":0,"ratings":{}}"#).await;
    let details = start_details().await;
    let reviews = start_reviews(Some((ratings.peer(), "black"))).await;
    let page =
        start_productpage(details.peer(), reviews.peer(), ratings.peer(), OutboundProxy::default()).await;
    let headers = [
        ("x-request-id", "r1"),
        ("traceparent", "00-1-2-01"),
        ("x-b3-traceid", "b3"),
        ("user-agent", "me"),
        ("x-private", "stays"),
        ("cookie", "bookinfo-user=jason"),
    ];
    assert_eq!(get(page.url("/productpage"), &headers).await.status(), StatusCode::OK);
    expect![[r#"
        [
            "/ratings/0 x-request-id=r1 traceparent=00-1-2-01 x-b3-traceid=b3 end-user=jason user-agent=me x-private=-",
        ]
    "#]]
    .assert_debug_eq(&*seen.lock().unwrap());
}

#[tokio::test]
async fn reviews_are_asked_twice_before_the_page_goes_without() {
    let (broken, seen) = recorder(&[], "{").await;
    let details = start_details().await;
    let page =
        start_productpage(details.peer(), broken.peer(), broken.peer(), OutboundProxy::default()).await;
    let shown = get(page.url("/productpage"), &[]).await;
    assert!(shown.body().contains("Product reviews could not be fetched!"), "{}", shown.body());
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_slow_part_is_not_waited_for() {
    // Takes connections and never answers; the clock stands still but for timers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::new("127.0.0.1", "", silent.local_addr().unwrap().port()).unwrap();
    let details = start_details().await;
    let page = start_productpage(details.peer(), peer.clone(), peer.clone(), OutboundProxy::default()).await;
    let asked = tokio::spawn(get(page.url("/api/v1/products/0/ratings"), &[]));
    let (_connection, _) = silent.accept().await.unwrap();
    tokio::time::pause();
    let answer = tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT, "{}", answer.body());
}

#[tokio::test]
async fn a_service_that_ends_closes_its_idle_connections() {
    let details = start_details().await;
    let client =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let request = Request::get(details.url("/health")).body(Full::new(Bytes::new())).unwrap();
    let response = client.request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // The client keeps its connection; the service must not wait for it.
    tokio::time::timeout(Duration::from_secs(5), details.stop()).await.unwrap();
}
