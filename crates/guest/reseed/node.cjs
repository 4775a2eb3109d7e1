// Required by Node.js before the program, in each of its threads: what the runtime has drawn ahead is drawn
// anew in a clone. OpenSSL's own generators are the preloaded library's part (preload.rs).
//
// | generator | why it would repeat | what is done |
// | --- | --- | --- |
// | Math.random | V8's state | another generator, seeded when the generation is another |
// | crypto.randomUUID, webcrypto's | 128 drawn ahead | not drawn ahead |
// | crypto.randomInt | 1024 drawn ahead | not drawn ahead |
// | everything else of crypto | OpenSSL's state | nothing here |
//
// Every draw compares the generation, so there is no moment in which a clone draws an old number. The first
// draw of Math.random is a draw of OpenSSL too, by which the library notes that the program has drawn.
//
// Not covered: the seeds of V8's hash tables, which decide no result of a program.
'use strict';

{
  const path = require('path');
  const library = path.join(__dirname, 'preload.so');
  const required = `--require ${__filename}`;

  // Programs that the server starts are none of the template: they find what was configured.
  const restore = (name, own, separator) => {
    const value = process.env[name];
    if (value === own) delete process.env[name];
    else if (value?.startsWith(own + separator)) process.env[name] = value.slice(own.length + separator.length);
  };
  restore('NODE_OPTIONS', required, ' ');
  restore('LD_PRELOAD', library, ':');
  restore('NODE_COMPILE_CACHE', '/run/casemate-code', ':');
  if (process.execArgv[0] === '--require' && process.execArgv[1] === __filename) process.execArgv.splice(0, 2);

  const addon = { exports: {} };
  try {
    process.dlopen(addon, library);
  } catch {
    // A program that forbids addons is not hooked, which the agent sees.
  }
  if (addon.exports.page && addon.exports.inEffect) hook(addon.exports);

  function hook({ page, inEffect }) {
    const generation = new Uint32Array(page, 0, 1);
    const crypto = require('crypto');
    // Draws from OpenSSL once, by which the library finds it: the agent takes no other word for it.
    const fill = crypto.randomFillSync;
    fill(new Uint32Array(1));
    replaceMathRandom(generation, fill);
    replaceCaches(crypto, fill);
    replaceWorker();
    keepHeap();
    require('module').syncBuiltinESMExports();
    inEffect();
  }

  // An idle heap is compacted some 40 s after it was last used, twice. In a clone that writes to 10 MiB which it
  // shared with others until then, and gives back nothing: no guest returns memory to its host.
  //
  // In emulation code that was just made has to be translated before it runs. V8's baseline compiler makes such code
  // of all that was run a few times; the interpreter's own was translated long ago. What is hot is optimised as ever.
  function keepHeap() {
    if (Number(process.versions.node.split('.')[0]) < 22) return;
    const { setFlagsFromString } = require('v8');
    setFlagsFromString('--memory-reducer-gc-count=0');
    if (require('os').cpus()[0]?.model.includes('TCG')) setFlagsFromString('--no-sparkplug');
  }

  // Replaces a function by another that looks the same.
  function replace(object, name, make) {
    const property = Object.getOwnPropertyDescriptor(object, name);
    if (typeof property?.value !== 'function') return;
    const original = property.value;
    const own = Object.getOwnPropertyDescriptors(original);
    delete own.prototype;
    const value = Object.defineProperties(make(original), own);
    Object.defineProperty(object, name, { ...property, value });
  }

  function replaceMathRandom(generation, fill) {
    const vm = require('vm');
    // Evaluated in each context, so that none gets hold of another's objects.
    const script = new vm.Script(`(${install})`, { filename: 'node:internal/random' });
    script.runInThisContext()(generation, fill);

    const installIn = (context) => {
      try {
        script.runInContext(context)(generation, fill);
      } catch {
        // A context that was made without a usable Math draws nothing from it.
      }
    };
    replace(vm, 'createContext', (original) => function (...args) {
      const known = typeof args[0] === 'object' && args[0] !== null && vm.isContext(args[0]);
      const context = original.apply(this, args);
      if (!known) installIn(context);
      return context;
    });
    const create = vm.createContext;
    const contextOf = (object, options) => {
      const { contextName: name, contextOrigin: origin, contextCodeGeneration: codeGeneration, microtaskMode } =
        typeof options === 'object' && options !== null ? options : {};
      const given = { name, origin, codeGeneration, microtaskMode };
      for (const key in given) if (given[key] === undefined) delete given[key];
      try {
        return create(object, given);
      } catch {
        // What is wrong with the arguments is said by the original.
        return object;
      }
    };
    replace(vm, 'runInNewContext', (original) => function (code, object, options) {
      return original.call(this, code, contextOf(object, options), options);
    });
    replace(vm.Script.prototype, 'runInNewContext', (original) => function (object, options) {
      return original.call(this, contextOf(object, options), options);
    });
  }

  // Puts xoshiro128** (Blackman and Vigna) in the place of Math.random; two of its numbers make the 53 bits.
  function install(generation, fill) {
    const seed = new Uint32Array(4);
    let seeded = -1;
    let a, b, c, d;
    const next = () => {
      let result = Math_imul(b, 5);
      result = Math_imul((result << 7) | (result >>> 25), 9);
      const t = b << 9;
      c ^= a;
      d ^= b;
      b ^= c;
      a ^= d;
      c ^= t;
      d = (d << 11) | (d >>> 21);
      return result >>> 0;
    };
    const Math_imul = Math.imul;
    const { random } = {
      random() {
        if (generation[0] !== seeded) {
          seeded = generation[0];
          fill(seed);
          a = seed[0] | 0;
          b = seed[1] | 0;
          c = seed[2] | 0;
          d = seed[3] | 1;
        }
        const high = next() >>> 5;
        return (high * 67108864 + (next() >>> 6)) / 9007199254740992;
      },
    };
    Math.random = random;
  }

  function replaceCaches(crypto, fill) {
    const unbuffered = (options) =>
      options === undefined || options?.disableEntropyCache === false || options?.disableEntropyCache === undefined
        ? { ...options, disableEntropyCache: true }
        : options;
    for (const name of ['randomUUID', 'randomUUIDv7']) {
      replace(crypto, name, (original) => function (options) {
        const valid = options === undefined || (typeof options === 'object' && options !== null);
        return original.call(this, valid && !Array.isArray(options) ? unbuffered(options) : options);
      });
    }

    const webcrypto = crypto.webcrypto;
    for (const name of ['randomUUID', 'randomUUIDv7']) {
      replace(Object.getPrototypeOf(webcrypto), name, (original) => function () {
        // Called on another object it is refused.
        return this === webcrypto ? crypto[name]() : original.call(this);
      });
    }

    const bytes = Buffer.allocUnsafeSlow(6);
    const COUNT = 2 ** 48;
    const draw = (min, max) => {
      const range = max - min;
      const limit = COUNT - (COUNT % range);
      for (;;) {
        fill(bytes);
        const number = bytes.readUIntBE(0, 6);
        if (number < limit) return (number % range) + min;
      }
    };
    // The original checks the arguments and decides when the callback is called; its number is not used.
    replace(crypto, 'randomInt', (original) => function (min, max, callback) {
      const short = typeof max === 'undefined' || typeof max === 'function';
      const [low, high, done] = short ? [0, min, max] : [min, max, callback];
      if (typeof done !== 'function') {
        original.call(this, min, max, callback);
        return draw(low, high);
      }
      const answer = (error) => (error ? done(error) : done(undefined, draw(low, high)));
      return short ? original.call(this, min, answer) : original.call(this, min, max, answer);
    });
  }

  // A thread that is given options or an environment of its own does not inherit what is required.
  function replaceWorker() {
    const threads = require('worker_threads');
    const hooked = (options) => {
      if (typeof options !== 'object' || options === null) return options;
      const { execArgv, env } = options;
      if (Array.isArray(execArgv)) return { ...options, execArgv: ['--require', __filename, ...execArgv] };
      if (typeof env !== 'object' || env === null || env === process.env) return options;
      const rest = env.NODE_OPTIONS === undefined ? '' : ` ${env.NODE_OPTIONS}`;
      return { ...options, env: { ...env, NODE_OPTIONS: required + rest } };
    };
    replace(threads, 'Worker', (Original) => class Worker extends Original {
      constructor(filename, options) {
        super(filename, hooked(options));
      }
    });
  }
}
