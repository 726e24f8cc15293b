//! Reads the constraints (`validate.rules`) of fields from the tables.

use super::layout::Op;
use super::{RULES, text, word};

/// The constraints of one field, or of the elements, keys or values of one.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// Index of the word that counts the rules.
    at: usize,
}

/// One constraint.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) op: Op,
    payload: usize,
    words: usize,
}

impl Rules {
    pub(super) fn at(offset: u32) -> Rules {
        Rules { at: RULES.start + offset as usize }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Rule> {
        let mut left = word(self.at);
        let mut at = self.at + 1;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let head = word(at);
            let op = *Op::ALL.get((head as usize & 0xff).checked_sub(1)?)?;
            let rule = Rule { op, payload: at + 1, words: (head >> 8) as usize };
            at = rule.payload + rule.words;
            Some(rule)
        })
    }

    pub(crate) fn find(self, op: Op) -> Option<Rule> {
        self.iter().find(|rule| rule.op == op)
    }

    pub(crate) fn has(self, op: Op) -> bool {
        self.find(op).is_some()
    }
}

impl Rule {
    /// Its number in raw form: an integer's or double's 64 bits, or nanoseconds.
    pub(crate) fn bits(self) -> u64 {
        self.list_item(0)
    }

    /// Its numbers in raw form.
    pub(crate) fn list(self) -> impl Iterator<Item = u64> {
        (0..self.words / 2).map(move |index| self.list_item(index))
    }

    fn list_item(self, index: usize) -> u64 {
        u64::from(word(self.payload + 2 * index)) | u64::from(word(self.payload + 2 * index + 1)) << 32
    }

    /// Its text.
    pub(crate) fn text(self) -> &'static str {
        self.text_item(0)
    }

    /// Its texts.
    pub(crate) fn texts(self) -> impl Iterator<Item = &'static str> {
        (0..self.words / 2).map(move |index| self.text_item(index))
    }

    fn text_item(self, index: usize) -> &'static str {
        text(word(self.payload + 2 * index), word(self.payload + 2 * index + 1))
    }

    /// The rules of elements, keys or values.
    pub(crate) fn nested(self) -> Rules {
        Rules::at(word(self.payload))
    }
}
