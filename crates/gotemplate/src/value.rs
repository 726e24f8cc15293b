//! The values that templates see: trees as of JSON, with Go's notions of nil, truth and kinds.
//!
//! Maps are references, as in Go (`set` changes what all see). All maps of a rendering belong to
//! its [`Heap`], which takes their contents away at the end: neither cycles nor chains of a
//! million maps do harm. Lists know their depth and are refused beyond [`MAX_DEPTH`].

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    rc::Rc,
};

use serde_json::Value as Json;

/// How deep values may be nested where they are walked (printed, compared, merged, encoded).
pub const MAX_DEPTH: u16 = 100;

/// One value.
#[derive(Clone)]
pub enum Value {
    /// Go's nil, and what a map does not have.
    Nil,
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number as JSON and YAML are read in Go.
    Float(f64),
    /// Text.
    String(Rc<str>),
    /// A list.
    List(List),
    /// A map from text.
    Map(Map),
    /// A thing with fields and methods, as a Go struct.
    Object(Rc<dyn Object>),
}

/// A list that knows how deep lists are nested in it.
#[derive(Clone)]
pub struct List(Rc<(Vec<Value>, u16)>);

/// A map; copies are the same map.
#[derive(Clone)]
pub struct Map {
    entries: Rc<RefCell<BTreeMap<Rc<str>, Value>>>,
    /// Go's map[string]string: what it does not have is the empty text.
    strings: bool,
}

/// A Go struct, or something that templates ask by name.
pub trait Object {
    /// What messages call it, as `*v1.Pod`.
    fn type_name(&self) -> &str;

    /// A field or a method by its Go name; methods get the arguments. `Ok(None)`: there is none.
    fn field(&self, heap: &Heap, name: &str, args: &[Value]) -> Result<Option<Value>, String>;

    /// Keys and values, if it can be ranged over as a map.
    fn entries(&self) -> Option<Vec<(String, Value)>> {
        None
    }

    /// What `%v` prints of it; `None`: its JSON.
    fn text(&self) -> Option<String> {
        None
    }

    /// What encoders make of it.
    fn to_json(&self) -> Json {
        Json::Object(serde_json::Map::new())
    }
}

/// What a rendering holds and how much it may still do.
pub struct Heap {
    /// All that were made, as they may hold each other.
    #[allow(clippy::type_complexity, reason = "a name for it would say no more")]
    maps: RefCell<Vec<Rc<RefCell<BTreeMap<Rc<str>, Value>>>>>,
    /// Steps left: nodes evaluated, elements made.
    steps: Cell<u64>,
    /// Bytes left for texts made and output.
    bytes: Cell<u64>,
}

impl Heap {
    /// A heap for one rendering that may take so many steps and make so many bytes.
    pub fn new(steps: u64, bytes: u64) -> Heap {
        Heap { maps: RefCell::new(Vec::new()), steps: Cell::new(steps), bytes: Cell::new(bytes) }
    }

    /// Counts work; an error once too much was done.
    pub fn step(&self, steps: usize) -> Result<(), String> {
        match self.steps.get().checked_sub(steps as u64) {
            Some(left) => {
                self.steps.set(left);
                Ok(())
            }
            None => Err("the template takes too many steps".to_owned()),
        }
    }

    /// Counts bytes of texts; an error once there are too many.
    pub fn spend(&self, bytes: usize) -> Result<(), String> {
        match self.bytes.get().checked_sub(bytes as u64) {
            Some(left) => {
                self.bytes.set(left);
                Ok(())
            }
            None => Err("the template makes too much text".to_owned()),
        }
    }

    /// Text, counted.
    pub fn text(&self, text: &str) -> Result<Value, String> {
        self.spend(text.len())?;
        Ok(Value::String(text.into()))
    }

    /// A new map.
    pub fn map(&self, entries: BTreeMap<Rc<str>, Value>) -> Map {
        let entries = Rc::new(RefCell::new(entries));
        self.maps.borrow_mut().push(Rc::clone(&entries));
        Map { entries, strings: false }
    }

    /// A new map[string]string.
    pub fn strings(&self, entries: BTreeMap<Rc<str>, Value>) -> Map {
        Map { strings: true, ..self.map(entries) }
    }

    /// A new list; an error if lists would be nested too deep.
    pub fn list(&self, items: Vec<Value>) -> Result<Value, String> {
        self.step(items.len())?;
        let depth = items.iter().map(|item| if let Value::List(list) = item { list.0.1 } else { 0 }).max();
        let depth = depth.unwrap_or(0) + 1;
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        Ok(Value::List(List(Rc::new((items, depth)))))
    }

    /// A JSON value, its numbers as Go reads them from JSON (all floats) or by what they are.
    pub fn json(&self, json: &Json, numbers: Numbers) -> Result<Value, String> {
        self.json_at(json, numbers, 0)
    }

    fn json_at(&self, json: &Json, numbers: Numbers, depth: u16) -> Result<Value, String> {
        if depth >= MAX_DEPTH {
            return Err(too_deep());
        }
        self.step(1)?;
        Ok(match json {
            Json::Null => Value::Nil,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (numbers, number.as_i64()) {
                (Numbers::Natural, Some(whole)) => Value::Int(whole),
                _ => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => self.text(text)?,
            Json::Array(items) => {
                let items = items.iter().map(|item| self.json_at(item, numbers, depth + 1));
                self.list(items.collect::<Result<_, _>>()?)?
            }
            Json::Object(object) => {
                let mut entries = BTreeMap::new();
                for (key, value) in object {
                    self.spend(key.len())?;
                    entries.insert(key.as_str().into(), self.json_at(value, numbers, depth + 1)?);
                }
                Value::Map(self.map(entries))
            }
        })
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // One map after the other loses its contents: no cycle survives, no drop recurses.
        for map in self.maps.get_mut().drain(..).collect::<Vec<_>>() {
            let contents = std::mem::take(&mut *map.borrow_mut());
            drop(contents);
        }
    }
}

/// How numbers of JSON are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// All are floats, as where Go reads into `interface{}`.
    Floats,
    /// Whole numbers are whole, as fields of Go structs.
    Natural,
}

impl List {
    /// The elements.
    pub fn items(&self) -> &[Value] {
        &self.0.0
    }
}

impl Map {
    /// The value under a key.
    pub fn find(&self, key: &str) -> Option<Value> {
        self.entries.borrow().get(key).cloned()
    }

    /// The value under a key, or what Go has for a key that is not there.
    pub fn value(&self, key: &str) -> Value {
        match self.find(key) {
            Some(value) => value,
            None if self.strings => Value::String("".into()),
            None => Value::Nil,
        }
    }

    /// Whether this is Go's map[string]string.
    pub fn is_strings(&self) -> bool {
        self.strings
    }

    /// Sets a key.
    pub fn insert(&self, key: &str, value: Value) {
        // What was there is dropped after the map is free again.
        let old = self.entries.borrow_mut().insert(key.into(), value);
        drop(old);
    }

    /// Takes a key away.
    pub fn remove(&self, key: &str) {
        let old = self.entries.borrow_mut().remove(key);
        drop(old);
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All keys and values, in the order of the keys, as they are now.
    pub fn entries(&self) -> Vec<(Rc<str>, Value)> {
        self.entries.borrow().iter().map(|(key, value)| (Rc::clone(key), value.clone())).collect()
    }

    /// Whether both are the same map (not only equal).
    pub fn is(&self, other: &Map) -> bool {
        Rc::ptr_eq(&self.entries, &other.entries)
    }
}

impl Value {
    /// Text that is not counted; for what is small or there already.
    pub fn text(text: &str) -> Value {
        Value::String(text.into())
    }

    /// Go templates' truth: not nil, zero or empty.
    pub fn truth(&self) -> bool {
        match self {
            Value::Nil => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::String(text) => !text.is_empty(),
            Value::List(list) => !list.items().is_empty(),
            Value::Map(map) => !map.is_empty(),
            Value::Object(_) => true,
        }
    }

    /// What Go calls the type (`typeOf`).
    pub fn type_name(&self) -> String {
        match self {
            Value::Nil => "<nil>",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::String(_) => "string",
            Value::List(_) => "[]interface {}",
            Value::Map(map) if map.strings => "map[string]string",
            Value::Map(_) => "map[string]interface {}",
            Value::Object(object) => object.type_name(),
        }
        .to_owned()
    }

    /// What Go calls the kind (`kindOf`).
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "invalid",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::String(_) => "string",
            Value::List(_) => "slice",
            Value::Map(_) => "map",
            Value::Object(object) if object.type_name().starts_with('*') => "ptr",
            Value::Object(_) => "struct",
        }
    }

    /// The same as JSON; an error if it is nested too deep (or contains itself).
    pub fn to_json(&self) -> Result<Json, String> {
        self.to_json_at(0)
    }

    fn to_json_at(&self, depth: u16) -> Result<Json, String> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        Ok(match self {
            Value::Nil => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Int(value) => Json::from(*value),
            Value::Float(value) => float_json(*value)?,
            Value::String(text) => Json::from(&**text),
            Value::List(list) => Json::Array(
                list.items().iter().map(|item| item.to_json_at(depth + 1)).collect::<Result<_, _>>()?,
            ),
            Value::Map(map) => {
                let mut object = serde_json::Map::new();
                for (key, value) in map.entries() {
                    object.insert(key.to_string(), value.to_json_at(depth + 1)?);
                }
                Json::Object(object)
            }
            Value::Object(inner) => inner.to_json(),
        })
    }

    /// Go's reflect.DeepEqual.
    pub fn deep_equal(&self, other: &Value) -> bool {
        self.deep_equal_at(other, 0)
    }

    fn deep_equal_at(&self, other: &Value, depth: u16) -> bool {
        // What is nested deeper is taken as different: no walk is endless.
        if depth > MAX_DEPTH {
            return false;
        }
        match (self, other) {
            (Value::Nil, Value::Nil) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Float(a), Value::Float(b)) => a == b,
            (Value::String(a), Value::String(b)) => a == b,
            (Value::List(a), Value::List(b)) => {
                a.items().len() == b.items().len()
                    && a.items().iter().zip(b.items()).all(|(a, b)| a.deep_equal_at(b, depth + 1))
            }
            (Value::Map(a), Value::Map(b)) => {
                a.is(b) || {
                    let (a, b) = (a.entries(), b.entries());
                    a.len() == b.len()
                        && a.iter()
                            .zip(&b)
                            .all(|((key, a), (other, b))| key == other && a.deep_equal_at(b, depth + 1))
                }
            }
            (Value::Object(a), Value::Object(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// As encoding/json: whole floats are written without a fraction.
fn float_json(value: f64) -> Result<Json, String> {
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and within range")]
    if value.fract() == 0.0 && value.abs() < 9.0e18 {
        return Ok(Json::from(value as i64));
    }
    serde_json::Number::from_f64(value)
        .map(Json::Number)
        .ok_or_else(|| format!("json: unsupported value: {}", crate::print::float(value)))
}

pub(crate) fn too_deep() -> String {
    format!("values are nested deeper than {MAX_DEPTH}, or contain themselves")
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::print::value(self).unwrap_or_else(|error| error))
    }
}
