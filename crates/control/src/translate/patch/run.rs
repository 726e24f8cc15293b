//! One pass of patches over a resource.

use std::collections::{BTreeMap, BTreeSet};

use leno_api::merge::{Lists, merge};
use prost::{Message, Name};

use super::{Resolved, Subject};
use crate::model::envoy_filter::{ApplyTo, ObjectMatch, Operation, Patch};
use crate::scope::patches::is_for;

/// The pass: which patches take part, and what they have done.
pub(super) struct Run<'a> {
    table: &'a [Resolved],
    pub(super) subject: &'a Subject,
    /// Those that take no part.
    left_out: &'a BTreeMap<usize, String>,
    /// If not all take part, those that do.
    only: Option<&'a BTreeSet<usize>>,
    pub(super) touched: BTreeSet<usize>,
    pub(super) failed: BTreeMap<usize, String>,
}

/// One patch.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    index: usize,
    pub(super) found: Option<&'a ObjectMatch>,
    pub(super) change: &'a Patch,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        table: &'a [Resolved],
        subject: &'a Subject,
        left_out: &'a BTreeMap<usize, String>,
        only: Option<&'a BTreeSet<usize>>,
    ) -> Run<'a> {
        Run { table, subject, left_out, only, touched: BTreeSet::new(), failed: BTreeMap::new() }
    }

    /// The patches for one sort of object in this context, in order.
    pub(super) fn steps(&self, apply_to: ApplyTo) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        for (index, row) in self.table.iter().enumerate() {
            let takes_part = self.only.is_none_or(|only| only.contains(&index));
            if self.left_out.contains_key(&index) || !takes_part {
                continue;
            }
            let patch = row.patch();
            let Some(patch) =
                patch.filter(|patch| patch.apply_to == apply_to && is_for(patch, self.subject.context))
            else {
                continue;
            };
            let Some(change) = &patch.patch else { continue };
            steps.push(Step { index, found: patch.r#match.as_ref(), change });
        }
        steps
    }

    /// Notes that a patch has changed something.
    pub(super) fn touch(&mut self, step: &Step<'_>) {
        self.touched.insert(step.index);
    }

    /// Notes that a patch could not be applied.
    pub(super) fn fail(&mut self, step: &Step<'_>, why: &dyn std::fmt::Display) {
        self.failed.entry(step.index).or_insert_with(|| why.to_string());
    }

    /// The value of a patch.
    pub(super) fn value<T: Message + Default>(&mut self, step: &Step<'_>) -> Option<T> {
        match T::decode(step.change.wire.as_ref()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(step, &error);
                None
            }
        }
    }

    /// Merges the value of a patch into a message.
    pub(super) fn merge<T: Message + Name + Default>(&mut self, step: &Step<'_>, target: &mut T) {
        self.merge_wire(step, target, step.change.wire.as_ref());
    }

    /// Merges a part of the value of a patch into a message.
    pub(super) fn merge_part<T: Message + Name + Default>(
        &mut self,
        step: &Step<'_>,
        target: &mut T,
        part: &T,
    ) {
        self.merge_wire(step, target, &part.encode_to_vec());
    }

    fn merge_wire<T: Message + Name + Default>(&mut self, step: &Step<'_>, target: &mut T, wire: &[u8]) {
        let merged = merge(&T::full_name(), &target.encode_to_vec(), wire, step.lists());
        let merged = merged.map_err(|error| error.to_string());
        match merged.and_then(|wire| T::decode(wire.as_slice()).map_err(|error| error.to_string())) {
            Ok(merged) => {
                *target = merged;
                self.touch(step);
            }
            Err(error) => self.fail(step, &error),
        }
    }

    /// Does what a patch says to the elements of a list, but for merging: adds, inserts, replaces and
    /// removes. `names` tells the element that the patch names; `None` if it names none.
    pub(super) fn arrange<T: Message + Default>(
        &mut self,
        step: &Step<'_>,
        list: &mut Vec<T>,
        names: Option<&dyn Fn(&T) -> bool>,
        end: usize,
    ) {
        let named = names.and_then(|names| list.iter().position(names));
        let at = match step.change.operation {
            Operation::Add => Some(end),
            Operation::InsertFirst => Some(0),
            Operation::InsertBefore if names.is_none() => Some(0),
            Operation::InsertAfter if names.is_none() => Some(list.len()),
            Operation::InsertBefore => named,
            Operation::InsertAfter => named.map(|at| at + 1),
            Operation::Replace => {
                if let Some(place) = named.and_then(|at| list.get_mut(at))
                    && let Some(value) = self.value(step)
                {
                    *place = value;
                    self.touch(step);
                }
                None
            }
            Operation::Remove => {
                if let Some(names) = names.filter(|_| named.is_some()) {
                    list.retain(|element| !names(element));
                    self.touch(step);
                }
                None
            }
            Operation::Invalid | Operation::Merge | Operation::MergeAndReplaceList => None,
        };
        if let Some(at) = at
            && let Some(value) = self.value(step)
        {
            list.insert(at.min(list.len()), value);
            self.touch(step);
        }
    }
}

impl Step<'_> {
    pub(super) fn is_merge(&self) -> bool {
        matches!(self.change.operation, Operation::Merge | Operation::MergeAndReplaceList)
    }

    pub(super) fn is_removal(&self) -> bool {
        self.change.operation == Operation::Remove
    }

    /// What becomes of lists.
    pub(super) fn lists(&self) -> Lists {
        match self.change.operation {
            Operation::MergeAndReplaceList => Lists::Replace,
            _ => Lists::Append,
        }
    }
}
