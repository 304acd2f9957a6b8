// BullMQ on Node, the roles of bench/peers/child.py: node bullmq_node.cjs HOME produce WAY COUNT | work IN_FLIGHT
"use strict";
const fs = require("node:fs");
const { createRequire } = require("node:module");

const [home, role, ...args] = process.argv.slice(2);
const { Queue, Worker } = createRequire(`${home}/node_modules/`)("bullmq");
const connection = { url: process.env.BENCH_REDIS_URL, maxRetriesPerRequest: null };
const HEAD = 20, SIZE = 2048, CHUNKS = { bulk: 1000, bulk100: 100 };

function payloads(count) {
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  let pool = "";
  while (pool.length < SIZE * 64) pool += letters[Math.floor(Math.random() * letters.length)];
  const size = SIZE - HEAD;
  return Array.from({ length: count }, () => {
    const start = Math.floor(Math.random() * (pool.length - size));
    return pool.slice(start, start + size);
  });
}

const stamped = (payload) => {
  const now = (performance.timeOrigin + performance.now()) / 1000;
  return { payload: now.toFixed(6).padEnd(HEAD) + payload };
};

async function produce(way, count) {
  const work = payloads(count);
  const queue = new Queue("bench", { connection });
  await queue.waitUntilReady();
  const begin = performance.now();
  const size = CHUNKS[way];
  if (size) {
    for (let at = 0; at < count; at += size) {
      await queue.addBulk(work.slice(at, at + size).map((p) => ({ name: "handle", data: stamped(p) })));
    }
  } else {
    for (let number = 0; number < count; number += 1) {
      if (way === "paced") {
        const wait = begin + number * 20 - performance.now();
        if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      }
      await queue.add("handle", stamped(work[number]));
    }
  }
  console.log(count / ((performance.now() - begin) / 1000));
  await queue.close();
}

function work(concurrency) {
  const file = fs.openSync(process.env.BENCH_STAMPS, "a");
  const stamp = Buffer.alloc(16);
  new Worker("bench", async (job) => {
    stamp.writeDoubleLE(parseFloat(job.data.payload.slice(0, HEAD)), 0);
    stamp.writeDoubleLE((performance.timeOrigin + performance.now()) / 1000, 8);
    fs.writeSync(file, stamp);
  }, { connection, concurrency });
}

if (role === "work") work(Number(args[0]));
else produce(args[0], Number(args[1]));
