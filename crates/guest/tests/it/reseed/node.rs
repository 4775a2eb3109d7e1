//! Node with the hooks.

use super::{Evaluator, Run, check_draws, check_transparent};
use casemate_guest::reseed::Hooked;
use casemate_proto::control::Reseed;
use serde_json::json;
use std::fs;

/// Whether `Math.random` is the runtime's own.
const NATIVE: &str = "/native code/.test(Math.random.toString())";

#[test]
fn a_program_that_draws_is_seen_and_the_runtime_is_not() {
    check_draws(
        Reseed::Node,
        &[
            ("typeof require('https').get + typeof require('tls').connect + process.pid", false),
            ("require('vm').runInNewContext('1 + 1')", false),
            ("require('crypto').createHash('sha256').update('x').digest('hex')", false),
            ("new Map([[{}, 1]]).size + structuredClone({ a: 1 }).a", false),
            ("Math.random()", true),
            ("require('vm').runInNewContext('Math.random()')", true),
            ("require('crypto').randomUUID()", true),
            ("require('crypto').webcrypto.randomUUID()", true),
            ("require('crypto').randomBytes(4)", true),
            ("new Promise((done) => require('crypto').randomBytes(4, done))", true),
            ("require('crypto').randomFillSync(Buffer.alloc(4))", true),
            ("require('crypto').randomInt(10)", true),
            ("new Promise((done) => require('crypto').randomInt(10, (_, number) => done(number)))", true),
            ("require('crypto').getRandomValues(new Uint8Array(4))", true),
            ("require('crypto').webcrypto.getRandomValues(new Uint8Array(4))", true),
            ("require('crypto').generateKeyPairSync('ed25519').privateKey.type", true),
            ("require('crypto').generateKeySync('hmac', { length: 64 }).type", true),
            ("require('crypto').createECDH('prime256v1').generateKeys('hex')", true),
            ("URL.createObjectURL(new Blob([]))", true),
            ("import('node:crypto').then((crypto) => crypto.randomUUID())", true),
        ],
    );
}

#[test]
fn no_difference_can_be_seen() {
    let about = |function: &str| {
        format!("(({function}) => [name, length, typeof value, Object.keys(value)])")
            .replace(function, "{ name, length, value }")
            + &format!("({{ name: {function}.name, length: {function}.length, value: {function} }})")
    };
    let functions = [
        "Math.random",
        "require('crypto').randomUUID",
        "require('crypto').randomInt",
        "require('crypto').webcrypto.randomUUID",
        "require('vm').createContext",
        "require('vm').runInNewContext",
        "require('worker_threads').Worker",
    ];
    let functions: Vec<String> = functions.iter().map(|function| about(function)).collect();
    let mut expressions: Vec<&str> = functions.iter().map(String::as_str).collect();
    expressions.extend([
        "process.env",
        "process.execArgv",
        "Object.keys(require('crypto'))",
        "Object.getOwnPropertyDescriptor(Math, 'random').enumerable",
        "Object.getOwnPropertyDescriptor(require('crypto'), 'randomUUID').enumerable",
        "require('crypto').randomInt('a')",
        "require('crypto').randomInt(5, 4)",
        "require('crypto').randomInt(5, 9, 3)",
        "require('crypto').randomInt(2 ** 48)",
        "require('crypto').randomInt(7, 8)",
        "require('crypto').randomUUID(null)",
        "require('crypto').randomUUID([])[8]",
        "require('crypto').randomUUID({ disableEntropyCache: 5 })",
        "require('crypto').randomUUID({ disableEntropyCache: false })[8]",
        "require('crypto').webcrypto.randomUUID.call({})",
        "require('vm').runInNewContext('1', 5)",
        "require('vm').runInNewContext('x', { x: 3 }, { contextName: 5 })",
        "require('vm').runInNewContext('typeof Math', { Math: undefined })",
        "new (require('vm').Script)('x').runInNewContext({ x: 4 })",
        "require('vm').createContext(3)",
        "new (require('worker_threads').Worker)('x', { eval: true, execArgv: 3 })",
        "require('child_process').execFileSync(process.execPath, ['-p', 'JSON.stringify(process.env)']) + ''",
        "new Set(Array.from({ length: 1000 }, Math.random)).size",
        "Array.from({ length: 1000 }, Math.random).every((number) => number >= 0 && number < 1)",
    ]);
    check_transparent(Reseed::Node, &[], &expressions);
    check_transparent(
        Reseed::Node,
        &[("NODE_OPTIONS", "--no-deprecation"), ("LD_PRELOAD", "")],
        &expressions,
    );
}

/// In a thread: whether `Math.random` is the runtime's own, its options, and whose process id it has.
const THREAD: &str = "const { parentPort } = require('worker_threads'); \
    parentPort.postMessage([/native code/.test(Math.random.toString()), process.execArgv, \
    process.env.NODE_OPTIONS ?? null, process.env.A ?? null, process.pid])";

#[test]
fn every_thread_and_context_has_the_generator() {
    let run = Run::new(Reseed::Node);
    let env = [("NODE_OPTIONS", "--no-deprecation")];
    let (mut plain, mut program) = (Evaluator::plain(Reseed::Node, &env), run.start(&[], &env));
    assert_eq!((plain.eval(NATIVE), program.eval(NATIVE)), (json!(true), json!(false)));
    for options in [
        "{}",
        "{ execArgv: ['--no-warnings'] }",
        "{ env: { A: '1' } }",
        "{ env: { ...process.env, A: '1' } }",
        "{ env: require('worker_threads').SHARE_ENV }",
        "{ env: { A: '1' }, execArgv: [] }",
    ] {
        let code = serde_json::to_string(THREAD).unwrap();
        let expression = format!(
            "((options) => new Promise((done) => new (require('worker_threads').Worker)({code}, \
             {{ eval: true, ...options }}).on('message', done)))({options})"
        );
        let mut expected = plain.eval(&expression);
        assert_eq!((&expected[0], &expected[4]), (&json!(true), &json!(plain.pid())));
        (expected[0], expected[4]) = (json!(false), json!(program.pid()));
        assert_eq!(program.eval(&expression), expected, "{options}");
        // In a clone threads have true process ids too.
        run.reseeder.bump().unwrap();
    }
    for context in [
        "vm.runInContext(code, vm.createContext({}))",
        "vm.runInNewContext(code)",
        "vm.runInNewContext(code, { x: 1 }, 'file.js')",
        "new vm.Script(code).runInNewContext({})",
    ] {
        let expression = format!("((vm, code) => {context})(require('vm'), {:?})", NATIVE);
        assert_eq!(program.eval(&expression), false, "{context}");
    }
}

#[test]
fn modules_that_import_see_the_replaced_functions() {
    let run = Run::new(Reseed::Node);
    let module = run.path().join("module.mjs");
    let code = "import crypto, { randomUUID, randomInt } from 'node:crypto'; import { Worker } from 'worker_threads';
        export default [randomUUID === crypto.randomUUID, randomInt === crypto.randomInt, Worker.toString().includes('hooked')];";
    fs::write(&module, code).unwrap();
    let mut program = run.start(&[], &[]);
    let expression = format!("import({:?}).then((module) => module.default)", module.to_str().unwrap());
    assert_eq!(program.eval(&expression), json!([true, true, true]));
}

#[test]
fn a_program_that_forbids_addons_runs_without_the_hooks() {
    let run = Run::new(Reseed::Node);
    let mut program = run.start(&["--no-addons"], &[]);
    assert_eq!(program.eval(NATIVE), true);
    assert_eq!(run.state(&program), Hooked::Missing(Some(program.pid())));
    assert_eq!(program.end(), "");
}
