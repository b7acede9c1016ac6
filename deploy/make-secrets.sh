#!/bin/sh
# Makes the secrets of docker-compose.yml, each in a file of `secrets/` beside it; those that are there stay as they are.
# Others of this machine are kept out by the folder: the files themselves are read by several users of the containers.
set -eu
cd "$(dirname "$0")/.."
mkdir -p secrets
chmod 700 secrets

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
keep() { # FILE: writes what comes in, unless the file is there
  [ -e "secrets/$1" ] || cat >"secrets/$1"
  chmod 644 "secrets/$1"
}

random | keep postgres_password
random | keep redis_password
random | keep s3_secret_key
random | keep token
postgres=$(cat secrets/postgres_password)
redis=$(cat secrets/redis_password)
key=$(cat secrets/s3_secret_key)

printf 'postgresql://tephra:%s@postgres:5432/tephra' "$postgres" | keep database_url
printf 'redis://:%s@redis:6379/0' "$redis" | keep redis_url
# An evicted key would be a lost job: noeviction is what the queue needs.
printf 'requirepass %s\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\nsave ""\n' "$redis" | keep redis.conf
printf '{"access_key": "tephra", "secret_key": "%s"}\n' "$key" | keep s3_credentials
keep s3.json <<END
{
  "identities": [
    {
      "name": "tephra",
      "credentials": [{ "accessKey": "tephra", "secretKey": "$key" }],
      "actions": ["Admin", "Read", "Write", "List", "Tagging"]
    }
  ]
}
END
digest=$(printf %s "$(cat secrets/token)" | sha256sum | cut -d ' ' -f 1)
keep tephra.yml <<END
auth:
  mode: static
  tokens:
    - { sha256: "$digest", user_id: operator, project_id: "00000000000000000000000000000001", roles: [admin] }
data_dir: /srv
repositories:
  - { name: main, url: "s3://tephra?endpoint=http://s3:8333", credentials: /run/secrets/s3_credentials, default: true }
volume_backends:
  - { name: files, driver: file, path: /srv/volumes }
import_roots: [/srv/import]
END
echo "The secrets are in $(pwd)/secrets; callers send secrets/token as X-Auth-Token."
