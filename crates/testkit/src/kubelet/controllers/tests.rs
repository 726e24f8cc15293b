//! Controllers against a cluster in which pods become ready when the test says so.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::super::cache::{Objects, Write, text};
use super::{balancers, due, slices};

#[derive(Default)]
struct Cluster {
    objects: Objects,
    made: u32,
}

impl Cluster {
    fn put(&mut self, plural: &'static str, mut object: Value) {
        self.made += 1;
        if object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = json!("a");
        }
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("u{}", self.made));
            object["metadata"]["creationTimestamp"] = json!(format!("{:04}", self.made));
        }
        self.objects.put(plural, object);
    }

    /// Does what controllers want until they want nothing.
    fn settle(&mut self) {
        for _ in 0..100 {
            let mut writes = due(&self.objects, "pem");
            writes.extend(balancers(&self.objects, "10.244.0.1"));
            writes.extend(slices(&self.objects, "node"));
            if writes.is_empty() {
                return;
            }
            for write in writes {
                self.write(write);
            }
        }
        panic!("they never come to rest");
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Create { plural, mut object } => {
                if object["metadata"]["name"].is_null() {
                    let name = format!("{}{}", text(&object, "/metadata/generateName"), self.made);
                    object["metadata"]["name"] = json!(name);
                }
                self.put(plural, object);
            }
            Write::Bind { .. } => unreachable!("that is the scheduler's"),
            Write::Patch { plural, namespace, name, patch, .. } => {
                let found = self.objects.find(plural, &namespace, &name).unwrap();
                let mut object = Value::clone(found);
                merge(&mut object, &patch);
                self.objects.put(plural, object);
            }
            Write::Delete { plural: "pods", namespace, name, .. } => {
                let mut pod = Value::clone(self.objects.find("pods", &namespace, &name).unwrap());
                pod["metadata"]["deletionTimestamp"] = json!("now");
                self.objects.put("pods", pod);
            }
            Write::Delete { plural, namespace, name, .. } => self.objects.remove(plural, &namespace, &name),
        }
    }

    /// What the kubelet does: what was deleted goes, the rest becomes ready. One at a time.
    fn step(&mut self) -> bool {
        let pods: Vec<Value> = self.objects.all("pods").map(|it| Value::clone(it)).collect();
        for mut pod in pods {
            if pod["metadata"]["deletionTimestamp"].is_string() {
                let name = text(&pod, "/metadata/name").to_owned();
                self.objects.remove("pods", "a", &name);
                return true;
            }
            if text(&pod, "/status/phase") != "Running" {
                self.made += 1;
                pod["status"] = json!({ "phase": "Running", "podIP": format!("10.244.1.{}", self.made),
                    "conditions": [{ "type": "Ready", "status": "True" }] });
                self.objects.put("pods", pod);
                return true;
            }
        }
        false
    }

    /// The pods by the image that they have: ready, not ready, and ending.
    fn pods(&self) -> String {
        let images = ["one", "two"].map(|image| {
            let of = |phase: &dyn Fn(&Value) -> bool| {
                let pods =
                    self.objects.all("pods").filter(|it| text(it, "/spec/containers/0/image") == image);
                pods.filter(|it| phase(it)).count()
            };
            let dying = |it: &Value| it["metadata"]["deletionTimestamp"].is_string();
            let ready = |it: &Value| text(it, "/status/phase") == "Running";
            format!(
                "{image}: {} ready, {} not, {} ending",
                of(&|it| ready(it) && !dying(it)),
                of(&|it| !ready(it) && !dying(it)),
                of(&dying)
            )
        });
        images.join("; ")
    }

    fn play(&mut self) -> String {
        let mut text = String::new();
        self.settle();
        text.push_str(&format!("{}\n", self.pods()));
        while self.step() {
            self.settle();
            text.push_str(&format!("{}\n", self.pods()));
        }
        text
    }
}

fn merge(object: &mut Value, patch: &Value) {
    match (object.as_object_mut(), patch) {
        (Some(map), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(map.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        _ => *object = patch.clone(),
    }
}

fn workload(kind: &str, image: &str, more: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": "web", "generation": 1, "uid": "w" },
        "spec": { "replicas": 3, "selector": { "matchLabels": { "app": "web" } }, "serviceName": "web",
            "template": { "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "c", "image": image }] } } },
    });
    merge(&mut object["spec"], more);
    object
}

fn roll(plural: &'static str, kind: &str, more: &Value, expected: &Expect) {
    let mut cluster = Cluster::default();
    cluster.put(plural, workload(kind, "one", more));
    cluster.play();
    let mut changed = Value::clone(cluster.objects.find(plural, "a", "web").unwrap());
    merge(&mut changed, &json!({ "metadata": { "generation": 2 } }));
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("two");
    cluster.put(plural, changed);
    let mut text = cluster.play();
    let status = &cluster.objects.find(plural, "a", "web").unwrap()["status"];
    text.push_str(&format!("{status}\n"));
    expected.assert_eq(&text);
}

#[test]
fn a_deployment_rolls() {
    let strategy = |it: Value| json!({ "strategy": it });
    let rolling = |surge: Value, unavailable: Value| {
        let limits = json!({ "maxSurge": surge, "maxUnavailable": unavailable });
        strategy(json!({ "type": "RollingUpdate", "rollingUpdate": limits }))
    };
    roll(
        "deployments",
        "Deployment",
        &rolling(json!("25%"), json!("25%")),
        &expect![[r#"
        one: 3 ready, 0 not, 0 ending; two: 0 ready, 1 not, 0 ending
        one: 2 ready, 0 not, 1 ending; two: 1 ready, 1 not, 0 ending
        one: 2 ready, 0 not, 0 ending; two: 1 ready, 1 not, 0 ending
        one: 1 ready, 0 not, 1 ending; two: 2 ready, 1 not, 0 ending
        one: 1 ready, 0 not, 0 ending; two: 2 ready, 1 not, 0 ending
        one: 0 ready, 0 not, 1 ending; two: 3 ready, 0 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 3 ready, 0 not, 0 ending
        {"observedGeneration":2,"replicas":3,"updatedReplicas":3,"readyReplicas":3,"availableReplicas":3,"unavailableReplicas":0,"conditions":[{"type":"Available","status":"True","reason":"MinimumReplicasAvailable"},{"type":"Progressing","status":"True","reason":"NewReplicaSetAvailable"}]}
    "#]],
    );
    roll(
        "deployments",
        "Deployment",
        &rolling(json!(0), json!(1)),
        &expect![[r#"
        one: 2 ready, 0 not, 1 ending; two: 0 ready, 1 not, 0 ending
        one: 2 ready, 0 not, 0 ending; two: 0 ready, 1 not, 0 ending
        one: 1 ready, 0 not, 1 ending; two: 1 ready, 1 not, 0 ending
        one: 1 ready, 0 not, 0 ending; two: 1 ready, 1 not, 0 ending
        one: 0 ready, 0 not, 1 ending; two: 2 ready, 1 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 2 ready, 1 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 3 ready, 0 not, 0 ending
        {"observedGeneration":2,"replicas":3,"updatedReplicas":3,"readyReplicas":3,"availableReplicas":3,"unavailableReplicas":0,"conditions":[{"type":"Available","status":"True","reason":"MinimumReplicasAvailable"},{"type":"Progressing","status":"True","reason":"NewReplicaSetAvailable"}]}
    "#]],
    );
    roll(
        "deployments",
        "Deployment",
        &strategy(json!({ "type": "Recreate" })),
        &expect![[r#"
        one: 0 ready, 0 not, 3 ending; two: 0 ready, 0 not, 0 ending
        one: 0 ready, 0 not, 2 ending; two: 0 ready, 0 not, 0 ending
        one: 0 ready, 0 not, 1 ending; two: 0 ready, 0 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 0 ready, 3 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 1 ready, 2 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 2 ready, 1 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 3 ready, 0 not, 0 ending
        {"observedGeneration":2,"replicas":3,"updatedReplicas":3,"readyReplicas":3,"availableReplicas":3,"unavailableReplicas":0,"conditions":[{"type":"Available","status":"True","reason":"MinimumReplicasAvailable"},{"type":"Progressing","status":"True","reason":"NewReplicaSetAvailable"}]}
    "#]],
    );
}

#[test]
fn others_roll() {
    roll(
        "statefulsets",
        "StatefulSet",
        &json!({ "replicas": 2 }),
        &expect![[r#"
        one: 1 ready, 0 not, 1 ending; two: 0 ready, 0 not, 0 ending
        one: 1 ready, 0 not, 0 ending; two: 0 ready, 1 not, 0 ending
        one: 0 ready, 0 not, 1 ending; two: 1 ready, 0 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 1 ready, 1 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 2 ready, 0 not, 0 ending
        {"observedGeneration":2,"replicas":2,"readyReplicas":2,"availableReplicas":2,"updatedReplicas":2,"currentReplicas":2,"currentRevision":"web-czjvgxv8kw","updateRevision":"web-czjvgxv8kw"}
    "#]],
    );
    roll(
        "daemonsets",
        "DaemonSet",
        &json!({}),
        &expect![[r#"
        one: 0 ready, 0 not, 1 ending; two: 0 ready, 0 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 0 ready, 1 not, 0 ending
        one: 0 ready, 0 not, 0 ending; two: 1 ready, 0 not, 0 ending
        {"observedGeneration":2,"currentNumberScheduled":1,"desiredNumberScheduled":1,"numberMisscheduled":0,"numberReady":1,"numberAvailable":1,"updatedNumberScheduled":1}
    "#]],
    );
}

#[test]
fn a_job_ends() {
    let mut cluster = Cluster::default();
    let job = json!({ "completions": 2, "backoffLimit": 1 });
    let mut job = workload("Job", "one", &job);
    job["apiVersion"] = json!("batch/v1");
    cluster.put("jobs", job);
    let mut text = String::new();
    for phase in ["Failed", "Succeeded", "Succeeded"] {
        cluster.settle();
        text.push_str(&format!("{}\n", cluster.objects.find("jobs", "a", "web").unwrap()["status"]));
        let pods: Vec<Value> = cluster.objects.all("pods").map(|it| Value::clone(it)).collect();
        for mut pod in pods.into_iter().filter(|it| it["status"].is_null()) {
            pod["status"] = json!({ "phase": phase });
            cluster.objects.put("pods", pod);
        }
    }
    cluster.settle();
    text.push_str(&format!("{}\n", cluster.objects.find("jobs", "a", "web").unwrap()["status"]));
    expect![[r#"
        {"active":1,"succeeded":0,"failed":0}
        {"active":1,"succeeded":0,"failed":1}
        {"active":1,"succeeded":1,"failed":1}
        {"active":0,"succeeded":2,"failed":1,"conditions":[{"type":"Complete","status":"True"}]}
    "#]]
    .assert_eq(&text);
}

#[test]
fn services_have_slices() {
    let mut cluster = Cluster::default();
    cluster.put(
        "services",
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "uid": "s" }, "spec": {
            "clusterIP": "10.96.0.9", "type": "LoadBalancer", "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": "http", "nodePort": 30_001 },
                { "name": "other", "port": 81 }, { "name": "udp", "port": 53, "protocol": "UDP" }] } }),
    );
    let pod = |name: &str, port: u16, ready: &str| {
        json!({ "metadata": { "name": name, "uid": name, "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": port }] }] },
            "status": { "phase": "Running", "podIP": format!("10.244.0.{}", port % 100),
                "conditions": [{ "type": "Ready", "status": ready }] } })
    };
    cluster.put("pods", pod("p1", 8001, "True"));
    cluster.put("pods", pod("p2", 8002, "False"));
    let mut third = pod("p3", 8001, "True");
    third["status"]["podIP"] = json!("10.244.0.3");
    cluster.put("pods", third);
    cluster.settle();
    let mut text = String::new();
    for slice in cluster.objects.all("endpointslices") {
        text.push_str(&format!("{}: {} {}\n", slice["metadata"]["name"], slice["ports"], slice["endpoints"]));
    }
    for service in super::proxied(&cluster.objects, [10, 244, 0, 1].into()) {
        text.push_str(&format!("{} -> {:?}\n", service.address, service.endpoints));
    }
    text.push_str(&format!("{}\n", cluster.objects.find("services", "a", "web").unwrap()["status"]));
    expect![[r#"
        "web-hbd6l": [{"name":"http","port":8002,"protocol":"TCP"},{"name":"other","port":81,"protocol":"TCP"},{"name":"udp","port":53,"protocol":"UDP"}] [{"addresses":["10.244.0.2"],"conditions":{"ready":false,"serving":false,"terminating":false},"nodeName":"node","targetRef":{"kind":"Pod","namespace":"a","name":"p2","uid":"p2"}}]
        "web-wxdqk": [{"name":"http","port":8001,"protocol":"TCP"},{"name":"other","port":81,"protocol":"TCP"},{"name":"udp","port":53,"protocol":"UDP"}] [{"addresses":["10.244.0.1"],"conditions":{"ready":true,"serving":true,"terminating":false},"nodeName":"node","targetRef":{"kind":"Pod","namespace":"a","name":"p1","uid":"p1"}},{"addresses":["10.244.0.3"],"conditions":{"ready":true,"serving":true,"terminating":false},"nodeName":"node","targetRef":{"kind":"Pod","namespace":"a","name":"p3","uid":"p3"}}]
        10.96.0.9:80 -> [10.244.0.1:8001, 10.244.0.3:8001]
        10.244.0.1:30001 -> [10.244.0.1:8001, 10.244.0.3:8001]
        10.244.0.1:80 -> [10.244.0.1:8001, 10.244.0.3:8001]
        10.96.0.9:81 -> [10.244.0.1:81, 10.244.0.3:81]
        10.244.0.1:81 -> [10.244.0.1:81, 10.244.0.3:81]
        {"loadBalancer":{"ingress":[{"ip":"10.244.0.1","ipMode":"VIP"}]}}
    "#]].assert_eq(&text);
    let pods: Vec<Value> = cluster.objects.all("pods").map(|it| Value::clone(it)).collect();
    for mut pod in pods {
        pod["status"]["phase"] = json!("Succeeded");
        cluster.objects.put("pods", pod);
    }
    cluster.settle();
    let left: Vec<_> = cluster.objects.all("endpointslices").map(|it| it["endpoints"].clone()).collect();
    assert_eq!(left, [json!([])]);
}

#[test]
fn what_has_lost_its_owner_goes() {
    let mut cluster = Cluster::default();
    let of = |kind: &str, name: &str, uid: &str| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "ownerReferences": [
            { "kind": kind, "name": "set", "uid": uid, "controller": true }] } })
    };
    let set = json!({ "metadata": { "name": "set", "uid": "there" }, "spec": { "replicas": 1 } });
    cluster.put("replicasets", set);
    for pod in [
        of("ReplicaSet", "kept", "there"),
        of("ReplicaSet", "late", "before"),
        of("Job", "lost", "nowhere"),
        of("Unknown", "other", "elsewhere"),
    ] {
        cluster.put("pods", pod);
    }
    cluster.settle();
    let gone = cluster.objects.all("pods").filter(|it| it["metadata"]["deletionTimestamp"].is_string());
    let gone: Vec<_> = gone.map(|it| text(it, "/metadata/name")).collect();
    assert_eq!(gone, ["late", "lost"]);
}
