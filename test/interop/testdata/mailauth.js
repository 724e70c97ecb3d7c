// Verifies mail with mailauth. Arguments: the resolver's address and port.
//
// On standard input comes mail after mail, each after a line with its length; for
// each, a line of JSON goes out: a list of domain, selector, pass and detail.

const { Resolver } = require('node:dns').promises;
const { dkimVerify } = require('mailauth/lib/dkim/verify');

const [host, port] = process.argv.slice(2);
const dns = new Resolver();
dns.setServers([`${host}:${port}`]);
const resolver = (name, type) => dns.resolve(name, type);

async function judge(message) {
	const { results } = await dkimVerify(message, { resolver });
	return results.filter((r) => r.signingDomain).map((r) => ({
		domain: r.signingDomain,
		selector: r.selector || '',
		pass: r.status.result === 'pass',
		detail: r.status.comment || r.info || '',
	}));
}

async function* messages() {
	let chunks = [];
	let have = 0;
	let want = -1;
	for await (const chunk of process.stdin) {
		chunks.push(chunk);
		have += chunk.length;
		while (want < 0 || have >= want) {
			let all = chunks.length === 1 ? chunks[0] : Buffer.concat(chunks);
			if (want < 0) {
				const end = all.indexOf(10);
				if (end < 0) {
					chunks = [all];
					break;
				}
				want = Number(all.subarray(0, end));
				all = all.subarray(end + 1);
			} else {
				yield all.subarray(0, want);
				all = all.subarray(want);
				want = -1;
			}
			chunks = [all];
			have = all.length;
			if (want < 0 && have === 0) break;
		}
	}
}

(async () => {
	for await (const message of messages()) {
		process.stdout.write(`${JSON.stringify(await judge(message))}\n`);
	}
})();
