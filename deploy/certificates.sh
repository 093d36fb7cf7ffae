#!/bin/sh
# Makes what a cluster proves itself with: deploy/certificates.sh FOLDER
#
#   ca.pem, ca-key.pem       an authority of this cluster alone; its key is not needed any more
#   cluster.pem, -key.pem    the certificate of scheduler, workers and clients
#   dask.yaml                Dask's configuration that names them, to be read by way of DASK_CONFIG
set -eu
umask 077
mkdir -p "$1"
cd "$1"
days=${2:-365}
openssl req -x509 -newkey rsa:3072 -nodes -days "$days" -subj "/CN=deepssim-scan cluster authority" \
    -keyout ca-key.pem -out ca.pem 2>/dev/null
openssl req -newkey rsa:3072 -nodes -subj "/CN=deepssim-scan cluster" \
    -keyout cluster-key.pem -out cluster.csr 2>/dev/null
openssl x509 -req -in cluster.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days "$days" \
    -out cluster.pem 2>/dev/null
rm -f cluster.csr ca.srl
here=$(pwd)
cat >dask.yaml <<END
distributed:
  comm:
    require-encryption: true
    tls:
      ca-file: $here/ca.pem
      scheduler: {cert: $here/cluster.pem, key: $here/cluster-key.pem}
      worker: {cert: $here/cluster.pem, key: $here/cluster-key.pem}
      client: {cert: $here/cluster.pem, key: $here/cluster-key.pem}
END
