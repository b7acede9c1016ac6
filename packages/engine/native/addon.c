// The functions of hashing.h for JavaScript. Every argument is checked here: a wrong call throws and touches no memory.
#include "hashing.h"

#include <node_api.h>
#include <stdbool.h>


static bool fail(napi_env env, const char *message) {
  napi_throw_range_error(env, NULL, message);
  return false;
}

static bool arguments(napi_env env, napi_callback_info info, size_t count, napi_value *values) {
  size_t given = count;
  if (napi_get_cb_info(env, info, &given, values, NULL, NULL) != napi_ok || given < count)
    return fail(env, "too few arguments");
  return true;
}

static bool bytes_of(napi_env env, napi_value value, uint8_t **data, size_t *length) {
  napi_typedarray_type type;
  bool is_array = false;
  napi_is_typedarray(env, value, &is_array);
  if (!is_array || napi_get_typedarray_info(env, value, &type, length, (void **)data, NULL, NULL) != napi_ok ||
      type != napi_uint8_array)
    return fail(env, "not a Uint8Array");
  return true;
}

static bool number_of(napi_env env, napi_value value, double max, double *number) {
  if (napi_get_value_double(env, value, number) != napi_ok || !(*number >= 0) || *number > max)
    return fail(env, "not a number in range");
  return true;
}

static bool path_of(napi_env env, napi_value value, int *path) {
  double number;
  if (!number_of(env, value, 3, &number)) return false;
  *path = (int)number;
  return tephra_paths() >> *path & 1 ? true : fail(env, "this processor has no such path");
}

/** paths(): bit n for path n. */
static napi_value paths(napi_env env, napi_callback_info info) {
  (void)info;
  napi_value result;
  napi_create_int32(env, tephra_paths(), &result);
  return result;
}

/** hashBlocks(path, data, blockBytes, zeroDigest, digests, zero) */
static napi_value hash_blocks(napi_env env, napi_callback_info info) {
  napi_value v[6];
  int path;
  uint8_t *data, *zero_digest, *digests, *zero;
  size_t length, zero_digest_length, digests_length, zero_length;
  double block;
  if (!arguments(env, info, 6, v) || !path_of(env, v[0], &path) || !bytes_of(env, v[1], &data, &length) ||
      !number_of(env, v[2], 1e15, &block) || !bytes_of(env, v[3], &zero_digest, &zero_digest_length) ||
      !bytes_of(env, v[4], &digests, &digests_length) || !bytes_of(env, v[5], &zero, &zero_length))
    return NULL;
  if (block < 1 || zero_digest_length != 32) return fail(env, "impossible sizes"), NULL;
  const size_t count = (length + (size_t)block - 1) / (size_t)block;
  if (digests_length < count * 32 || zero_length < count) return fail(env, "too little room for the results"), NULL;
  tephra_hash_blocks(path, data, length, (size_t)block, zero_digest, digests, zero);
  return NULL;
}

/** md5Start(states): 16 bytes for each digest. */
static napi_value md5_start(napi_env env, napi_callback_info info) {
  napi_value v[1];
  uint8_t *state;
  size_t length;
  if (!arguments(env, info, 1, v) || !bytes_of(env, v[0], &state, &length)) return NULL;
  if (length % 16 != 0 || (uintptr_t)state % 4 != 0) return fail(env, "impossible sizes"), NULL;
  tephra_md5_start((uint32_t(*)[4])state, (int)(length / 16));
  return NULL;
}

static bool array_of(napi_env env, napi_value value, napi_typedarray_type wanted, void **data, size_t *length) {
  napi_typedarray_type type;
  bool is_array = false;
  napi_is_typedarray(env, value, &is_array);
  if (!is_array || napi_get_typedarray_info(env, value, &type, length, data, NULL, NULL) != napi_ok || type != wanted)
    return fail(env, "not the right typed array");
  return true;
}

/** md5Update(path, states, data, offsets, lengths): message i is lengths[i] bytes at offsets[i] of data. */
static napi_value md5_update(napi_env env, napi_callback_info info) {
  napi_value v[5];
  int path;
  uint8_t *state, *data;
  size_t state_length, data_length, count, lengths_count;
  double *offset;
  uint32_t *length;
  if (!arguments(env, info, 5, v) || !path_of(env, v[0], &path) || !bytes_of(env, v[1], &state, &state_length) ||
      !bytes_of(env, v[2], &data, &data_length) ||
      !array_of(env, v[3], napi_float64_array, (void **)&offset, &count) ||
      !array_of(env, v[4], napi_uint32_array, (void **)&length, &lengths_count))
    return NULL;
  if (count > MESSAGES_MAX || lengths_count != count || state_length != count * 16 || (uintptr_t)state % 4 != 0)
    return fail(env, "impossible sizes"), NULL;
  const uint8_t *message[MESSAGES_MAX];
  size_t bytes[MESSAGES_MAX];
  for (size_t i = 0; i < count; i++) {
    if (!(offset[i] >= 0) || offset[i] + length[i] > (double)data_length) return fail(env, "beyond the data"), NULL;
    message[i] = data + (size_t)offset[i];
    bytes[i] = length[i];
  }
  tephra_md5_update(path, message, bytes, (int)count, (uint32_t(*)[4])state);
  return NULL;
}

/** md5Finish(state, tail, totalBytes, digest): ends the digest whose 16 bytes of state are given. */
static napi_value md5_finish(napi_env env, napi_callback_info info) {
  napi_value v[4];
  uint8_t *state, *tail, *digest;
  size_t state_length, tail_length, digest_length;
  double total;
  if (!arguments(env, info, 4, v) || !bytes_of(env, v[0], &state, &state_length) ||
      !bytes_of(env, v[1], &tail, &tail_length) || !number_of(env, v[2], 9e15, &total) ||
      !bytes_of(env, v[3], &digest, &digest_length))
    return NULL;
  if (state_length != 16 || (uintptr_t)state % 4 != 0 || tail_length > 63 || digest_length != 16)
    return fail(env, "impossible sizes"), NULL;
  tephra_md5_finish((uint32_t *)state, tail, tail_length, (uint64_t)total, digest);
  return NULL;
}

NAPI_MODULE_INIT() {
  const struct {
    const char *name;
    napi_callback function;
  } all[] = {{"paths", paths},
             {"hashBlocks", hash_blocks},
             {"md5Start", md5_start},
             {"md5Update", md5_update},
             {"md5Finish", md5_finish}};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
    napi_value function;
    if (napi_create_function(env, all[i].name, NAPI_AUTO_LENGTH, all[i].function, NULL, &function) != napi_ok ||
        napi_set_named_property(env, exports, all[i].name, function) != napi_ok)
      return NULL;
  }
  return exports;
}
