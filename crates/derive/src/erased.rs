//! A shared value whose type only its owner knows. The node table holds keys and values of all types in this form;
//! the typed interface in `graph.rs` and `eval.rs` puts them in and takes them out.

use std::any::Any;
use std::sync::Arc;

/// Why a downcast cannot fail: nodes and tables are found by the `TypeId` of the input, index or query that made
/// them, and never change hands.
const OWNED: &str = "a node keeps the type that it was made with";

#[derive(Clone)]
pub(crate) struct Erased(Arc<dyn Any + Send + Sync>);

impl Erased {
    pub(crate) fn new<T: Send + Sync + 'static>(value: Arc<T>) -> Self {
        Self(value)
    }

    pub(crate) fn as_ref<T: Send + Sync + 'static>(&self) -> &T {
        self.0.downcast_ref().expect(OWNED)
    }

    pub(crate) fn into_arc<T: Send + Sync + 'static>(self) -> Arc<T> {
        self.0.downcast().expect(OWNED)
    }
}

/// The table of type `T` behind `table`.
pub(crate) fn downcast<T: 'static>(table: &dyn Any) -> &T {
    table.downcast_ref().expect(OWNED)
}

/// The table of type `T` behind `table`, to be changed.
pub(crate) fn downcast_mut<T: 'static>(table: &mut dyn Any) -> &mut T {
    table.downcast_mut().expect(OWNED)
}
